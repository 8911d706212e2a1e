"""The Rule: a function, the forward pass that training runs, and its hand-written backward.

Everything in this project is a Rule: an activation, a layer, a chain of layers, a
network, the cost of a network. A rule is called like the function it defines;
calling it runs its `jax.custom_vjp`. `rule.forward` and `rule.backward` run the two
halves by hand, with no automatic differentiation.
"""

import inspect
from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from jaxprop import explicit_axes, installing
from jaxprop.array_types import PyTree, as_arrays, of_numpy, tree_type
from jaxprop.installing import Saved

_AUTOMATIC = jax.make_user_context(default_value=False)


def automatic() -> AbstractContextManager:
    """Within this context every rule runs its reference, under JAX's own differentiation.

    So one program can be run both ways, custom against automatic, and forward-mode
    differentiation (`jax.jvp`, `jax.jacfwd`), which no `custom_vjp` has, works. The context is
    part of jit's cache key: a function jitted outside is traced again inside.
    `rule.forward` and `rule.backward` are not affected.
    """
    return _AUTOMATIC(True)


class _Raw(NamedTuple):
    """What a rule's author wrote, and the custom_vjps made of it, one per set of options."""

    forward: Callable
    backward: Callable
    signature: inspect.Signature
    installed: dict[Hashable, Callable]


class Case(NamedTuple):
    """One set of arguments to check a rule at.

    name:    what is particular about it, a few words.
    args:    the positional arguments.
    options: the options.
    given:   arrays at the scope of the rule's derivation, by the names that its F and B
             lines use; None where the arguments and options serve as they are.
    edge:    whether it lies on a kink, a tie or an extreme (zeros, infinities).
    """

    name: str
    args: tuple
    options: Mapping[str, Hashable] = MappingProxyType({})
    given: dict[str, Any] | None = None
    edge: bool = False


def _cases_of_arrays(cases: Callable[[], Sequence[Case]]) -> list[Case]:
    """The cases, their NumPy arrays jax arrays, as a function's body sees them."""
    return [case._replace(args=of_numpy(case.args)) for case in cases()]


@dataclass(frozen=True, eq=False, repr=False)
class Rule:
    """A function with a hand-written backward pass.

    reference(*args, **options) -> y             plain JAX: the definition. It carries the
                                                 name, the docstring, the signature and the
                                                 only defaults.
    forward(*args, **options) -> (y, residuals)  what training runs.
    backward(residuals, g) -> cotangents         a tuple, one per positional argument.
    cases() -> [Case, ...]                       arguments to check the rule at; NumPy's arrays
                                                 among them become jax arrays.
    budget                                       bytes saved per element of the output, beyond
                                                 arguments and output; None: not declared.
    surrogate                                    True where backward is not the derivative,
                                                 on purpose.

    Positional arguments are arrays, pytrees of arrays, or None; what is annealed or
    learned is one of them. Options are keyword-only, hashable and static: each value
    of one is a compilation. Integer arrays, keys and None get the cotangent None.

    The `forward` and `backward` of a rule are the installed versions: defaults bound,
    cotangents checked, cast to the dtypes of their primals and summed over mesh axes.
    Rules compare by identity. A rule is named after its reference, `_reference` left off.
    """

    reference: Callable
    forward: Callable
    backward: Callable
    cases: Callable[[], Sequence[Case]] = tuple
    budget: float | None = field(default=None, kw_only=True)
    surrogate: bool = field(default=False, kw_only=True)
    name: str = field(init=False)
    bound: dict[str, Hashable] = field(init=False)  # the options that bind() fixed
    _raw: "_Raw" = field(init=False)

    def __post_init__(self) -> None:
        signature = _signature(self.reference)
        name = self.reference.__name__.removesuffix("_reference")
        for attribute, value in {
            "name": name,
            "bound": {},
            "forward": partial(_installed_forward, self),
            "backward": partial(_installed_backward, self),
            "cases": partial(_cases_of_arrays, self.cases),
            "_raw": _Raw(self.forward, self.backward, signature, {}),
            "__name__": name,
            "__doc__": self.reference.__doc__,
            "__module__": self.reference.__module__,
            "__signature__": signature,
            "__wrapped__": self.reference,
        }.items():
            object.__setattr__(self, attribute, value)

    def __call__(self, *args: PyTree, **options: Hashable) -> PyTree:
        args, options = self.resolve(*args, **options)
        if _AUTOMATIC.value:
            with explicit_axes.remedy(self.name):
                return self.reference(*args, **options)
        return _custom_vjp(self, options)(*args)

    def __reduce__(self) -> str:
        """By name, as functions: copies are the rule itself; pickle needs it at a module's top."""
        return self.name

    def __repr__(self) -> str:
        bare = [
            p.replace(annotation=inspect.Parameter.empty)
            for p in self._raw.signature.parameters.values()
        ]
        return f"{self.name}{inspect.Signature(bare)}"

    def resolve(self, *args: PyTree, **options: Hashable) -> tuple[tuple, dict[str, Hashable]]:
        """(every positional argument, as jax arrays, and every option), defaults filled in.

        Raises TypeError where they do not fit the rule's signature, where an argument is not
        data, and where an option is an array, a tracer or anything else that cannot be static.
        """
        signature = self._raw.signature
        try:
            bound = signature.bind(*args, **options)
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}. Call it as {self!r}.") from None
        bound.apply_defaults()
        for name, value in bound.kwargs.items():
            _check_option(self.name, name, value)
        names = self.argument_names
        args = tuple(
            as_arrays(self.name, name, arg) for name, arg in zip(names, bound.args, strict=True)
        )
        return args, bound.kwargs

    def bind(self, **options: Hashable) -> "Rule":
        """This rule with some options fixed; its cases are kept, with those options."""
        parameters = self._raw.signature.parameters
        for name, value in options.items():
            if (
                name not in parameters
                or parameters[name].kind is not inspect.Parameter.KEYWORD_ONLY
            ):
                raise TypeError(
                    f"{self.name}.bind: {name!r} is not an option of {self!r}. Only options (after "
                    "*) can be fixed; pass arrays when the rule is called."
                )
            _check_option(self.name, name, value)

        def reference(*args: PyTree, **others: Hashable) -> PyTree:
            return self.reference(*args, **options, **others)

        reference.__name__ = self.name
        reference.__doc__ = self.reference.__doc__
        reference.__module__ = self.reference.__module__
        kept = [p for name, p in parameters.items() if name not in options]
        vars(reference)["__signature__"] = self._raw.signature.replace(parameters=kept)
        bound = Rule(
            reference,
            partial(self._raw.forward, **options),
            self._raw.backward,
            lambda: [_without_options(case, options) for case in self.cases()],
            budget=self.budget,
            surrogate=self.surrogate,
        )
        bound.bound.update(self.bound | options)
        return bound

    @property
    def argument_names(self) -> tuple[str, ...]:
        """The names of the positional arguments, in order."""
        return tuple(
            name
            for name, parameter in self._raw.signature.parameters.items()
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY
        )


def _signature(reference: Callable) -> inspect.Signature:
    """The reference's signature; TypeError where a rule cannot have it, or has no name."""
    if not hasattr(reference, "__name__"):
        raise TypeError(
            f"Rule: reference must be a function with a name, got {type(reference).__name__} "
            f"({reference!r}). Write it with def; bind() fixes options."
        )
    signature = inspect.signature(reference)
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(
                f"{reference.__name__}: every argument and option of a rule must have a name, got "
                f"{parameter}. Take a tuple or a dict of arrays as one argument."
            )
    return signature


def _without_options(case: Case, names: Container[str]) -> Case:
    return case._replace(options={k: v for k, v in case.options.items() if k not in names})


def _check_option(owner: str, name: str, value: Hashable) -> None:
    if isinstance(value, jax.Array):
        raise TypeError(
            f"{owner}: the option {name} must be a Python value known when tracing, got an array "
            f"of type {jax.typeof(value)}. Each value of an option is a compilation: give a "
            "number, a string or a tuple; close over it, or mark it in jit's static_argnames."
        )
    try:
        hash(value)
    except TypeError:
        raise TypeError(
            f"{owner}: the option {name} must be hashable, got {type(value).__name__} "
            f"({value!r}). Give a tuple in place of a list or an array."
        ) from None


def _static_key(value: Hashable) -> Hashable:
    """A key that keeps 1, 1.0 and True apart, and 0.0 and -0.0, which are equal to Python."""
    if isinstance(value, tuple):
        return (type(value), *map(_static_key, value))
    return (type(value), value.hex() if isinstance(value, float) else value)


def _custom_vjp(rule: Rule, options: dict[str, Hashable]) -> Callable:
    """The rule with these options as JAX sees it: the same object each time, for jit's cache."""
    key = tuple((name, _static_key(value)) for name, value in options.items())
    if key not in rule._raw.installed:

        def primal(*args: PyTree) -> PyTree:
            return rule.forward(*args, **options)[0]

        def forward(*args: PyTree) -> tuple[PyTree, Saved]:
            return rule.forward(*args, **options)

        primal.__name__ = forward.__name__ = rule.name
        function = jax.custom_vjp(primal)
        function.defvjp(forward, rule.backward)
        rule._raw.installed.setdefault(key, function)  # atomic: threads share one
    return rule._raw.installed[key]


def _installed_forward(rule: Rule, *args: PyTree, **options: Hashable) -> tuple[PyTree, Saved]:
    args, options = rule.resolve(*args, **options)
    primals = tuple(map(tree_type, args))
    with explicit_axes.remedy(rule.name):
        returned = rule._raw.forward(*args, **options)
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise TypeError(
            f"{rule.name}.forward must return (output, residuals), got "
            f"{type(returned).__name__}. Return residuals=() where backward needs none."
        )
    y, residuals = returned
    outputs = as_arrays(rule.name, "the output", y)
    y = installing.tie(outputs, args, rule.surrogate)
    residuals = installing.replaced(residuals, outputs, y)
    return y, Saved(residuals, primals, tree_type(y), rule.name)


def _installed_backward(rule: Rule, saved: Saved, g: PyTree) -> tuple[PyTree, ...]:
    if not isinstance(saved, Saved) or saved.owner != rule.name:
        got = f"those of {saved.owner}" if isinstance(saved, Saved) else type(saved).__name__
        raise TypeError(
            f"{rule.name}.backward: residuals must be what {rule.name}.forward returned beside "
            f"its output, got {got}. Call y, residuals = {rule.name}.forward(...)."
        )

    def backward(residuals: PyTree, g: PyTree) -> tuple[PyTree, ...]:
        cotangents = rule._raw.backward(residuals, g)
        return installing.outgoing_cotangents(
            rule.name, rule.argument_names, saved.primals, cotangents
        )

    g = installing.incoming_cotangent(rule.name, saved.output, g)
    # JAX may hand a constant back as a number of its own kind.
    residuals = as_arrays(rule.name, "residuals", saved.residuals)
    return explicit_axes.on_auto_axes(backward, saved.primals)(residuals, g)
