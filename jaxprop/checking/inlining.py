"""A function with its custom derivatives taken out: what automatic differentiation makes of it.

A function that uses a `custom_vjp` somewhere inside has no reference of its own. Its traced
program has one: the same program, with each `custom_vjp` replaced by what that wraps.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core

PyTree = Any

VJP = "custom_vjp_call"
JVP = "custom_jvp_call"


def without_custom_vjps(f: Callable[..., PyTree], jvps_too: bool = False) -> Callable[..., PyTree]:
    """f, differentiated through the primal of every `custom_vjp` in it.

    Args:
        f: a function that jax can trace.
        jvps_too: whether `custom_jvp`s are taken out as well, where there is no `custom_vjp`.
            jax's own functions (`jax.nn.relu`, `jnp.logaddexp`) use them for the better, so
            they stay where they are not what is under check.
    """

    def plain(*args: PyTree) -> PyTree:
        closed, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
        names = {eqn.primitive.name for eqn in equations(closed.jaxpr)}
        inlined = frozenset({VJP} if VJP in names or not jvps_too else {JVP})
        flat = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), inlined)
        return jax.tree.unflatten(jax.tree.structure(shapes), flat)

    return plain


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation, those of inner programs included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_program):
            if is_program(inner):
                yield from equations(getattr(inner, "jaxpr", inner))


def is_program(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


def _evaluate(jaxpr: Any, consts: Any, args: list, inlined: frozenset[str]) -> list:
    """The program on these arrays, the inlined calls opened wherever they stand."""
    variables = [*jaxpr.constvars, *jaxpr.invars]
    known: dict[Any, Any] = dict(zip(variables, [*consts, *args], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else known[atom]

    for eqn in jaxpr.eqns:
        found = _result(eqn, [read(atom) for atom in eqn.invars], inlined)
        known.update(zip(eqn.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _result(eqn: Any, args: list, inlined: frozenset[str]) -> list:
    """One equation's results: opened, rebuilt around programs that are opened, or as it is."""
    name = eqn.primitive.name
    params = eqn.primitive.get_bind_params(eqn.params)
    if name in inlined:
        return _opened(eqn.params["call_jaxpr"], args, inlined)
    if _holds(eqn.params, inlined):
        if name in ("jit", "pjit", "checkpoint", "remat2", "remat"):
            return _opened(eqn.params["jaxpr"], args, inlined)
        if name == JVP:
            return _opened(eqn.params["call_jaxpr"], args, inlined)
        if name not in ("scan", "while", "cond"):
            raise NotImplementedError(f"a custom derivative inside {name} cannot be taken out")
        params = {key: _rebuilt(value, inlined) for key, value in params.items()}
    found = eqn.primitive.bind(*args, **params)
    return list(found) if eqn.primitive.multiple_results else [found]


def _holds(params: dict[str, Any], inlined: frozenset[str]) -> bool:
    programs = jax.tree.leaves(list(params.values()), is_leaf=is_program)
    return any(
        eqn.primitive.name in inlined
        for program in programs
        if is_program(program)
        for eqn in equations(getattr(program, "jaxpr", program))
    )


def _opened(program: Any, args: list, inlined: frozenset[str]) -> list:
    return _evaluate(getattr(program, "jaxpr", program), _consts(program), args, inlined)


def _consts(program: Any) -> Any:
    return getattr(program, "consts", ())


def _rebuilt(value: Any, inlined: frozenset[str]) -> Any:
    if isinstance(value, tuple):
        return tuple(_rebuilt(part, inlined) for part in value)
    if not is_program(value):
        return value
    avals = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in value.in_avals]
    return jax.make_jaxpr(lambda *args: _opened(value, list(args), inlined))(*avals)
