"""Whether the derivation in a rule's docstring is right, at a case, in float64."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop import vocabulary
from jaxprop.checking.compiling import in_one_program
from jaxprop.derivation import (
    Derivation,
    backward_steps,
    derivation,
    double,
    environment,
    is_floating,
    run_forward,
)
from jaxprop.rule import Case, Rule
from jaxprop.samples import normal


def verify(rule: Rule, case: Case, tolerance: float) -> list[str]:
    """Find what is wrong with the derivation in a rule's docstring, at one case.

    The last F line must be the reference's value, and every B line, those of intermediate
    quantities too, the gradient in what it names: a zero is added to each F assignment, and
    automatic differentiation of the F lines in those zeros and in the arguments gives the
    truth. Every B line must cite the F lines that it follows from. An argument to which the
    rule's backward gives no cotangent needs no line. Of a surrogate the truth is its backward:
    the B lines say what stands in the gradient's place.

    Args:
        rule: a Rule with a derivation.
        case: its `given` are arrays at the scope of the derivation: the lines, and the
            reference where they are arguments or options of it, read them in the place of the
            case's own.
        tolerance: the error allowed, relative to the largest magnitude of the truth, or to 1
            where that is smaller.

    Returns:
        The problems found, a sentence each; none where the derivation is right.
    """
    problems: list[str] = []
    try:
        lines = derivation(rule)
        with jax.enable_x64(True):
            start = environment(rule, case.args, case.options, case.given)
            problems.extend(_misquotations(lines, start))
            problems.extend(_errors(rule, case, lines, tolerance))
    except ValueError as error:  # of a line that cannot be evaluated: what was found before stands
        problems.append(str(error))
    return [f"{rule.name}, {case.name}: {problem}" for problem in problems]


def _misquotations(lines: Derivation, start: Mapping[str, Any]) -> Iterator[str]:
    """What can be seen of the lines without evaluating them."""
    for letter, part in {"F": lines.forward, "B": lines.backward}.items():
        labels = [line.label for line in part]
        if labels != [f"{letter}{i}" for i in range(1, len(part) + 1)]:
            yield f"labels must count up from {letter}1, got {', '.join(labels)}"
    for line in lines.backward:
        name = line.name.removeprefix("d")
        readers, after = _readers(lines, name), _downstream(lines, name)
        if name == line.name or name not in {*start, *(f.name for f in lines.forward)}:
            yield f"{line.label} assigns {line.name}, which is no d<name> of a quantity here"
        elif not readers <= set(line.follows) <= after:
            yield (
                f"{line.label} must cite {', '.join(sorted(readers))}, the lines that read "
                f"{name}, and none but {', '.join(sorted(after))}; it cites "
                f"{', '.join(line.follows) or 'none'}"
            )


def _readers(lines: Derivation, name: str) -> set[str]:
    """The F lines that read the value of a quantity."""
    return {f.label for f in lines.forward if name in vocabulary.names(f.expression, shapes=False)}


def _downstream(lines: Derivation, name: str) -> set[str]:
    """The F lines whose value depends on a quantity."""
    known, labels = {name}, set()
    for line in lines.forward:
        if known & set(vocabulary.names(line.expression, shapes=False)):
            known.add(line.name)
            labels.add(line.label)
    return labels


def _errors(rule: Rule, case: Case, lines: Derivation, tolerance: float) -> Iterator[str]:
    """The F lines against the reference, the B lines against the gradients of the F lines."""
    start = environment(rule, case.args, case.options, case.given)
    values, truths = run_forward(lines, start, {}), _references(rule, case)
    if len(truths) != len(lines.outputs):
        read = ", ".join(lines.outputs.values())
        yield f"of {len(truths)} outputs the B lines read the cotangents {read} alone"
        return
    for name, truth in zip(lines.outputs, truths, strict=True):
        if not _near(values[name], truth, tolerance):
            yield f"the F lines give {name} another value than the reference"
    values |= {
        g: normal(i, *values[name].shape).astype(jnp.float64)
        for i, (name, g) in enumerate(lines.outputs.items())
    }
    take = _cotangents if rule.surrogate else _gradients
    gradients = take(rule, case, lines, values)
    stated = {line.name for line in lines.backward}
    silent = [name for name in gradients if f"d{name}" not in stated and name in start]
    if silent:
        given_none = {*rule.argument_names} - {*_cotangents(rule, case, lines, values)}
        yield from (f"no line states d{name}" for name in silent if name not in given_none)
    for line, derived in backward_steps(lines, values):
        name = line.name.removeprefix("d")
        if name in gradients and not _near(derived, gradients[name], tolerance):
            yield f"{line.label}, {line.text}, is not the gradient in {name}"


def _references(rule: Rule, case: Case) -> list[jax.Array]:
    """The reference's outputs, its arguments and options those given where they are."""
    args, options = _arguments(rule, case)
    return jax.tree.leaves(in_one_program(partial(rule.reference, **options), *args))


def _arguments(rule: Rule, case: Case) -> tuple[tuple, dict[str, Any]]:
    """The arguments in float64 and the options, those given in the place of the case's own."""
    given = case.given or {}
    args = [given.get(name, arg) for name, arg in zip(rule.argument_names, case.args, strict=False)]
    # Further arguments that are given: at the derivation's scope they are there.
    args += [given[name] for name in rule.argument_names[len(args) :] if name in given]
    _, options = rule.resolve(*args, **case.options)
    options = {name: given.get(name, value) for name, value in options.items()}
    return double(tuple(args)), options


def _cotangents(
    rule: Rule, case: Case, lines: Derivation, values: Mapping[str, Any]
) -> dict[str, Any]:
    """What the rule's backward gives each argument, but for those to which it gives None."""
    args, options = _arguments(rule, case)
    y, saved = rule.forward(*args, **options)
    leaves = [values[g] for g in lines.outputs.values()]
    cotangents = rule.backward(saved, jax.tree.unflatten(jax.tree.structure(y), leaves))
    pairs = zip(rule.argument_names, cotangents, strict=True)
    return {name: cotangent for name, cotangent in pairs if cotangent is not None}


def _gradients(
    rule: Rule, case: Case, lines: Derivation, values: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """The gradient of sum(g * output) in each floating array at the start and each F line."""
    start = environment(rule, case.args, case.options, case.given)

    def total(arrays: dict[str, jax.Array], probes: dict[str, jax.Array]) -> jax.Array:
        found = run_forward(lines, {**start, **arrays}, probes)
        products = [jnp.sum(values[g] * found[name]) for name, g in lines.outputs.items()]
        return jnp.sum(jnp.stack(products))

    arrays = {name: value for name, value in start.items() if is_floating(value)}
    probes = {
        line.name: jnp.zeros_like(values[line.name])
        for line in lines.forward
        if is_floating(values[line.name])
    }
    in_arrays, in_probes = in_one_program(jax.grad(total, argnums=(0, 1)), arrays, probes)
    return in_arrays | in_probes


def _near(value: jax.Array, truth: jax.Array, tolerance: float) -> bool:
    if jnp.shape(value) != jnp.shape(truth):
        return False
    errors = np.abs(np.asarray(value) - np.asarray(truth))  # nan is not <= anything
    scale = max(1.0, float(np.max(np.abs(np.asarray(truth)), initial=0.0)))
    return bool(np.all(errors <= tolerance * scale))
