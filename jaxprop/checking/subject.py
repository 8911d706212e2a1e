"""What is checked: a function, its reference, its arguments and how they are called."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.checking.inlining import without_custom_vjps
from jaxprop.rule import Rule

PyTree = Any


@dataclass(frozen=True)
class Subject:
    """A function under check, over the arguments that are data.

    call, reference: functions of `args` alone; what is not data (strings, functions, the
    arguments of `nondiff_argnums`) is closed over.
    args, names: the arguments and what they are called.
    whole, static: f itself, and whether some of its arguments are closed over in `call`.
    """

    name: str
    call: Callable[..., PyTree]
    reference: Callable[..., PyTree]
    args: tuple[PyTree, ...]
    names: tuple[str, ...]
    whole: Callable[..., PyTree]
    static: bool

    def at(self, args: tuple[PyTree, ...]) -> "Subject":
        return replace(self, args=args)


def subject(
    f: Callable[..., PyTree], args: tuple[PyTree, ...], reference: Callable[..., PyTree] | None
) -> Subject:
    """f over its data arguments, with the reference given or found."""
    args = _with_defaults(f, args)
    static = _static_positions(f, args)
    names = _argument_names(f, len(args))
    data = tuple(_arrays(arg) for i, arg in enumerate(args) if i not in static)
    call = _closing_over(f, args, static)
    return Subject(
        name=getattr(f, "__name__", type(f).__name__),
        call=call,
        reference=_reference(f, call, args, static, reference),
        args=data,
        names=tuple(name for i, name in enumerate(names) if i not in static),
        whole=f,
        static=bool(static),
    )


def _reference(
    f: Callable[..., PyTree],
    call: Callable[..., PyTree],
    args: tuple[PyTree, ...],
    static: frozenset[int],
    given: Callable[..., PyTree] | None,
) -> Callable[..., PyTree]:
    """The one given, a rule's own, or f with its custom derivatives taken out."""
    if given is not None:
        return _closing_over(given, args, static)
    if isinstance(f, Rule):
        return _closing_over(f.reference, args, static)
    if isinstance(f, (jax.custom_vjp, jax.custom_jvp)):
        return without_custom_vjps(_closing_over(vars(f)["__wrapped__"], args, static))
    return without_custom_vjps(call, jvps_too=True)


def _with_defaults(f: Callable[..., PyTree], args: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
    """The arguments, those left out filled in: a bare `custom_vjp` cannot be called without.

    A rule can; but what it takes by default has a gradient too.
    """
    if not isinstance(f, (jax.custom_vjp, Rule)):
        return args
    left_out = positional(f)[len(args) :]
    defaults = [p.default for p in left_out if p.default is not p.empty]
    return (*args, *defaults)


def _static_positions(f: Callable[..., PyTree], args: tuple[PyTree, ...]) -> frozenset[int]:
    declared = getattr(f, "nondiff_argnums", ())
    return frozenset(declared) | {i for i, arg in enumerate(args) if not _is_data(arg)}


def _is_data(arg: PyTree) -> bool:
    return all(
        isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float, complex))
        for leaf in jax.tree.leaves(arg)
    ) and not isinstance(arg, bool)


def _closing_over(
    f: Callable[..., PyTree], args: tuple[PyTree, ...], static: frozenset[int]
) -> Callable[..., PyTree]:
    if not static:
        return f

    def closed(*data: PyTree) -> PyTree:
        remaining = iter(data)
        return f(*(arg if i in static else next(remaining) for i, arg in enumerate(args)))

    return closed


def _argument_names(f: Callable[..., PyTree], count: int) -> list[str]:
    names = [p.name for p in positional(f)]
    return [names[i] if i < len(names) else f"argument {i}" for i in range(count)]


def positional(f: Callable[..., PyTree]) -> list[inspect.Parameter]:
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):
        return []
    return [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _arrays(tree: PyTree) -> PyTree:
    """Every leaf as an array; Python numbers become 0-d ones, no longer weakly typed."""
    return jax.tree.map(
        lambda leaf: leaf if isinstance(leaf, jax.Array) else jnp.asarray(np.asarray(leaf)), tree
    )


def is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def is_key(leaf: jax.Array) -> bool:
    """Whether it is a PRNG key, new-style or the words of an old one."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) or leaf.dtype == jnp.uint32


def on_device(x: Any, dtype: Any) -> jax.Array:
    """x as a jax array of this dtype, cast on the host: jax would compile a cast for each shape."""
    return jnp.asarray(np.asarray(x).astype(dtype), dtype)


def in_dtype(tree: PyTree, dtype: Any) -> PyTree:
    """The floating leaves of a tree in another dtype; cast on the host, where nothing compiles."""

    def cast(leaf: jax.Array) -> jax.Array:
        if not is_float(leaf) or leaf.dtype == dtype:
            return leaf
        return on_device(leaf, dtype)

    return jax.tree.map(cast, tree)


def floats(tree: PyTree) -> list[jax.Array]:
    return [leaf for leaf in jax.tree.leaves(tree) if is_float(leaf)]


def labels(names: Iterable[str], args: tuple[PyTree, ...]) -> list[str]:
    """Name and path of every floating leaf: x, params['w']."""
    return [
        name + jax.tree_util.keystr(path)
        for name, arg in zip(names, args, strict=True)
        for path, leaf in jax.tree_util.tree_leaves_with_path(arg)
        if is_float(leaf)
    ]
