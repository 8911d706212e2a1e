"""Executable derivations: the F and B lines of a rule's docstring, read and run.

A derivation stands in the docstring as

    Scope      rows: x (B, C)
    Forward    e = exp(x - max(x))                                     (F1)
               y = e / sum(e)                                          (F2)
    Backward   dx = y * (g - sum(g * y))                               (B1) from F1, F2

up to the next empty line. Each line is an assignment in the words of `vocabulary`; it may run
over several lines of text and ends with its label. The last F line is the output and `g` its
cotangent; a rule with several outputs has `g_<output>` for each, their F lines in the order
in which the rule returns them. `d<name>` is the gradient of sum(g * output) in `<name>`, an
argument or an F line. Each B line cites the F lines that it follows from: every one that
reads `<name>`, and where it runs through several at once, those after it as well.
"""

import ast
import inspect
import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop import vocabulary
from jaxprop.installing import PyTree
from jaxprop.rule import Rule

_END = re.compile(r"\((?P<label>[FB]\d+)\)(?:\s+from\s+(?P<follows>F\d+(?:\s*,\s*F\d+)*))?\s*$")
_HEADING = re.compile(r"^\s*(Scope|Forward|Backward)\s")


@dataclass(frozen=True)
class Line:
    """One line of a derivation: `name = expression  (label) from follows`."""

    label: str
    name: str
    text: str
    follows: tuple[str, ...]
    expression: ast.expr = field(repr=False, compare=False)


@dataclass(frozen=True)
class Derivation:
    """The derivation in a rule's docstring."""

    rule: str
    scope: str
    forward: tuple[Line, ...]
    backward: tuple[Line, ...]

    def __iter__(self) -> Iterator[Line]:
        return iter((*self.forward, *self.backward))

    @property
    def outputs(self) -> dict[str, str]:
        """The outputs and the names of their cotangents."""
        read = {name for line in self.backward for name in vocabulary.names(line.expression)}
        several = {line.name: f"g_{line.name}" for line in self.forward}
        outputs = {name: g for name, g in several.items() if g in read}
        return outputs or {self.forward[-1].name: "g"}


@dataclass(frozen=True)
class Derived:
    """The value of every line of a derivation, in order; print it for a table."""

    derivation: Derivation
    values: dict[str, np.ndarray]  # by label

    def __str__(self) -> str:
        lines = [line for line in self.derivation if line.label in self.values]
        width = max(len(line.text) for line in lines)
        rows = [f"{self.derivation.rule}: {self.derivation.scope}"]
        for line in lines:
            value = self.values[line.label]
            cited = f"  from {', '.join(line.follows)}" if line.follows else ""
            rows.append(f"{line.label:>4}  {line.text:<{width}}  {value.shape}{cited}")
            rows += [f"        {row}" for row in _summary(value).splitlines()]
        return "\n".join(rows)


def derivation(rule: Rule) -> Derivation:
    """Read the derivation in a rule's docstring.

    Raises:
        ValueError: where there is none, or a line of it is not in the vocabulary.
    """
    parts: dict[str, list] = {"Scope": [], "Forward": [], "Backward": []}
    part, pending = "", ""
    for row in _block(inspect.getdoc(rule.reference) or ""):
        if heading := _HEADING.match(row):
            part, row = heading[1], row[heading.end() :]
        if part == "Scope":
            parts[part].append(row.strip())
            continue
        pending = f"{pending} {row.strip()}".strip()
        if end := _END.search(pending):
            parts[part].append(_line(rule.name, pending[: end.start()].strip(), end))
            pending = ""
    if pending or not parts["Forward"] or not parts["Backward"]:
        raise ValueError(
            f"{rule.name}: its docstring must have a derivation, lines that end with (F1) under "
            f"Forward and (B1) from F1 under Backward, got {pending or 'none'!r}. See "
            "docs/adding-a-rule.md."
        )
    forward, backward = tuple(parts["Forward"]), tuple(parts["Backward"])
    return Derivation(rule.name, " ".join(parts["Scope"]), forward, backward)


def derive(
    rule: Rule,
    *args: PyTree,
    g: PyTree = None,
    given: Mapping[str, Any] | None = None,
    **options: Hashable,
) -> Derived:
    """Run the derivation of a rule line by line, in float64, on arrays of your own.

    Use it to read a rule: print what it returns. The arrays must be at the derivation's
    scope, which the first row of the table states.

    Args:
        rule: a Rule with a derivation.
        args: its arguments.
        g: the cotangent of the output, or a dict from output to cotangent where there are
            several; ones where None.
        given: arrays by name, for what a derivation names that is no argument (one leaf of a
            tree, say).
        options: the rule's options.

    Returns:
        Derived; `values` are NumPy arrays by label, `str` is a table.

    Raises:
        ValueError: where the rule has no derivation, a line of it is not in the vocabulary or
            cannot be evaluated, a name in it has no value, or g has another shape.
    """
    with jax.enable_x64(True):
        lines = derivation(rule)
        values = run_forward(lines, environment(rule, args, options, given), {})
        values = run_backward(lines, values | _cotangents(lines, values, g))
        return Derived(
            lines,
            {line.label: np.asarray(values[line.name]) for line in lines if line.name in values},
        )


def _block(doc: str) -> list[str]:
    """The lines of a docstring from Scope or Forward to the next empty line."""
    rows = doc.splitlines()
    starts = [i for i, row in enumerate(rows) if _HEADING.match(row)]
    if not starts:
        return []
    block = rows[starts[0] :]
    return block[: block.index("")] if "" in block else block


def _line(owner: str, text: str, end: re.Match) -> Line:
    label, text = end["label"], " ".join(text.split())
    try:
        name, expression = vocabulary.read(text)
    except ValueError as error:
        raise ValueError(f"{owner}: in line {label}, {error}") from None
    follows = tuple(re.findall(r"F\d+", end["follows"] or ""))
    return Line(label, name, text, follows, expression)


def environment(
    rule: Rule, args: tuple, options: Mapping[str, Hashable], given: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What the lines may name, in float64: arguments and options, what is given in their place."""
    bound = inspect.signature(rule).bind_partial(*args, **options)
    bound.apply_defaults()
    values = {**rule.bound, **bound.arguments, **(given or {})}
    present = {name: value for name, value in values.items() if value is not None}
    return {name: double(v, name in rule.argument_names) for name, v in present.items()}


def double(tree: PyTree, numbers: bool = True) -> PyTree:
    """The tree with its floating arrays in float64, and with `numbers` its floats so too."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, float) and numbers:
            return jnp.asarray(leaf, jnp.float64)
        return jnp.asarray(leaf, jnp.float64) if is_floating(leaf) else leaf

    return jax.tree.map(convert, tree)


def is_floating(value: Any) -> bool:
    """Whether it is an array in which a gradient may be taken."""
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating)


def run_forward(
    lines: Derivation, start: Mapping[str, Any], probes: Mapping[str, jax.Array]
) -> dict[str, Any]:
    """start, and the value of each F line with its probe added."""
    values = dict(start)
    for line in lines.forward:
        value = _value(lines, line, values)
        values[line.name] = value + probes[line.name] if line.name in probes else value
    return values


def run_backward(lines: Derivation, values: Mapping[str, Any]) -> dict[str, Any]:
    """values, and that of each B line, but for gradients in what has none (integer labels)."""
    return {**values, **{line.name: value for line, value in backward_steps(lines, values)}}


def backward_steps(
    lines: Derivation, values: Mapping[str, Any]
) -> Iterator[tuple[Line, jax.Array]]:
    """Each B line and its value, as soon as it is known."""
    values = dict(values)
    for line in lines.backward:
        if is_floating(values.get(line.name.removeprefix("d"))):
            values[line.name] = _value(lines, line, values)
            yield line, values[line.name]


def _value(lines: Derivation, line: Line, values: Mapping[str, Any]) -> jax.Array:
    try:
        # On paper integers and numbers mix, whatever the caller has chosen for programs.
        with jax.numpy_dtype_promotion("standard"):
            return jnp.asarray(vocabulary.evaluate(line.expression, values))
    except KeyError as error:
        raise ValueError(
            f"{lines.rule}: line {line.label}, {line.text}, names {error.args[0]}, which is not "
            f"among {', '.join(values)}. The scope is: {lines.scope}. Pass it as an argument, or "
            f"in given={{'{error.args[0]}': ...}}."
        ) from None
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"{lines.rule}: line {line.label}, {line.text}, cannot be evaluated on these arrays. "
            f"Give arrays at the derivation's scope: {lines.scope}. JAX says: {error}"
        ) from error


def _cotangents(lines: Derivation, values: Mapping[str, Any], g: PyTree) -> dict[str, jax.Array]:
    """The cotangent of each output by its name in the lines; ones, unless told."""
    outputs = lines.outputs
    by_output = g if isinstance(g, Mapping) else dict.fromkeys(outputs, g)
    cotangents = {}
    for name, cotangent in outputs.items():
        shape, given = values[name].shape, by_output.get(name)
        cotangents[cotangent] = jnp.ones(shape) if given is None else double(jnp.asarray(given))
        if cotangents[cotangent].shape != shape:
            raise ValueError(
                f"{lines.rule}: {cotangent} must have the shape of {name}, {shape}, got "
                f"{cotangents[cotangent].shape}. Give one cotangent per element of the output."
            )
    return cotangents


def _summary(value: np.ndarray) -> str:
    """The whole of a small array; of a big one its range and its mean."""
    if value.size <= 24:
        return np.array2string(value, precision=4, suppress_small=True)
    return f"{value.min():.4g} to {value.max():.4g}, mean {value.mean():.4g}"
