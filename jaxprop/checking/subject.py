"""What is checked: a function, its reference, its arguments and how they are called."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.rule import Rule

PyTree = Any


@dataclass(frozen=True)
class Subject:
    """A function under check, over the arguments that are data.

    call, reference: functions of `args` alone; what is not data (strings, functions, the
    arguments of `nondiff_argnums`) is closed over. reference is None where there is none.
    backward: a custom_vjp's own backward, (residuals, g) -> cotangents, where it can be had.
    args, names: the arguments and what they are called.
    """

    name: str
    call: Callable[..., PyTree]
    reference: Callable[..., PyTree] | None
    args: tuple[PyTree, ...]
    names: tuple[str, ...]
    whole: Callable[..., PyTree]

    def at(self, args: tuple[PyTree, ...]) -> "Subject":
        return replace(self, args=args)


def subject(
    f: Callable[..., PyTree], args: tuple[PyTree, ...], reference: Callable[..., PyTree] | None
) -> Subject:
    """f over its data arguments, with the reference given, found, or None."""
    static = _static_positions(f, args)
    found = reference or _own_reference(f)
    names = _argument_names(f, len(args))
    data = tuple(_arrays(arg) for i, arg in enumerate(args) if i not in static)
    return Subject(
        name=getattr(f, "__name__", type(f).__name__),
        call=_closing_over(f, args, static),
        reference=None if found is None else _closing_over(found, args, static),
        args=data,
        names=tuple(name for i, name in enumerate(names) if i not in static),
        whole=f,
    )


def _own_reference(f: Callable[..., PyTree]) -> Callable[..., PyTree] | None:
    """A rule's reference, or what a `custom_vjp` wraps; None for any other function."""
    if isinstance(f, Rule):
        return f.reference
    if isinstance(f, jax.custom_vjp):
        return f.__wrapped__  # type: ignore[attr-defined]
    return None


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
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = [
        p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return [positional[i] if i < len(positional) else f"argument {i}" for i in range(count)]


def _arrays(tree: PyTree) -> PyTree:
    """Every leaf as an array; Python numbers become 0-d ones."""
    return jax.tree.map(
        lambda leaf: leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf), tree
    )


def is_float(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def in_dtype(tree: PyTree, dtype: Any) -> PyTree:
    """The floating leaves of a tree in another dtype."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if is_float(leaf) else leaf, tree)


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
