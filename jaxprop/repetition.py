"""A stack of one layer, n times: one loop forward, and its reverse backward."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.array_types import accumulator
from jaxprop.composition import add_cotangents, as_layer
from jaxprop.installing import PyTree
from jaxprop.layers import Layer
from jaxprop.rule import Rule
from jaxprop.structure import (
    carried,
    check_count,
    check_stacked,
    checkpointed,
    keys_of,
    like,
    stacked_init,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stacked:
    """The residuals of every repetition, stacked, each distinct leaf once.

    own: the leaves that are neither of params nor of the context.
    whole: of one repetition, the tree of all residuals.
    places: for each of its leaves the tree that has it (params, context or own), and where.
    """

    own: list[jax.Array]
    whole: Any = field(metadata={"static": True})
    places: tuple[tuple[int, int], ...] = field(metadata={"static": True})


class RepeatResiduals(NamedTuple):
    """params and context are arguments; runs has a Stacked for each loop.

    context: () where x is an array, else a tuple of the one context.
    """

    params: PyTree
    context: tuple
    runs: list[Stacked]


class Passes(NamedTuple):
    """What a loop repeats: a layer, or several of its repetitions taken as one."""

    forward: Callable[..., tuple[jax.Array, PyTree]]
    backward: Callable[..., tuple[PyTree, PyTree, None]]


class Run(NamedTuple):
    """One loop: `times` times what `passes` does, which is `length` repetitions of the layer."""

    passes: Passes
    start: int
    times: int
    length: int

    def part(self, tree: PyTree) -> PyTree:
        """Of leaves with a first axis of n, this loop's share, as (times, length, ...)."""
        return jax.tree.map(self._part_of_leaf, tree)

    def _part_of_leaf(self, leaf: jax.Array) -> jax.Array:
        size = self.times * self.length
        if size != len(leaf):
            leaf = leaf[self.start : self.start + size]
        return leaf if self.length == 1 else leaf.reshape(self.times, self.length, *leaf.shape[1:])

    def whole(self, tree: PyTree) -> PyTree:
        """Of leaves (times, length, ...) as (times * length, ...)."""
        if self.length == 1:
            return tree
        size = self.times * self.length
        return jax.tree.map(lambda leaf: leaf.reshape(size, *leaf.shape[2:]), tree)


def repeat(block: Rule, n: int, *, save: int | None = None) -> Layer:
    """Make a stack of one layer n times, each with parameters of its own: one loop, compiled once.

    Use it for the blocks of a transformer: time and size of the compilation do not grow with
    depth. What is saved is a choice: everything that the block's rules ask for, or the input of
    every save-th block alone, from which backward runs that many blocks again: about one more
    forward in all, for a memory of n / save inputs and the residuals of `save` blocks.

    Forward    h_k = block(params_k, h_{k-1}, context), k = 1..n
    Backward   dparams_k, dh_{k-1}, dcontext_k = block.backward(res_k, dh_k), k = n..1
               dcontext = dcontext_1 + .. + dcontext_n

    Args:
        block: a Layer, or a Rule of one array, whose output has the shape and dtype of h.
        n: how often; positive.
        save: None to save all residuals, 1 for the input of every block, 2 for that of every
            second, ... The result is the same. Where it does not divide n, the last blocks are a
            shorter loop of their own, and parameters are copied to cut them in two.

    Returns:
        A Layer; params are those of the block, each leaf with a first axis of n. x is h_0, or a
        tuple (h_0, context), where the context is a pytree that every block gets as it is, the
        block's x being (h, context). Given a key, the repetition at position k (from 0) gets
        `jax.random.fold_in(key, k)`.

    Residuals: those of every repetition, stacked; params and context among them are not copied,
        and what a block saves twice is saved once. With save, the inputs alone.

    Numerics: dcontext is summed in float32 at least.

    Raises:
        TypeError: where the block is neither a layer nor a rule of one array.
        ValueError: where n or save is not a positive integer, or save more than n; when called,
            where a leaf of params has not n as its first axis, or the block's output has another
            shape or dtype than h.

    Source: for save, Chen et al. (2016), Training deep nets with sublinear memory cost.
    """
    layer = as_layer("repeat", block, "the block")
    check_count("repeat", n)
    runs = _runs(layer, n, save)

    def reference(params: PyTree, x: PyTree, key: jax.Array | None = None) -> jax.Array:
        def step(h: jax.Array, at: tuple) -> tuple[jax.Array, None]:
            return like("repeat", h, layer.reference(at[0], _x(h, context), at[1])), None

        check_stacked("repeat", params, n)
        h, *context = _parts(x)
        return lax.scan(step, carried(h, params), (params, keys_of(key, n)), length=n)[0]

    def forward(
        params: PyTree, x: PyTree, key: jax.Array | None
    ) -> tuple[jax.Array, RepeatResiduals]:
        check_stacked("repeat", params, n)
        (h, *context), keys, saved = _parts(x), keys_of(key, n), []
        h = carried(h, params)
        for run in runs:
            h, stacked = _forward_loop(run, run.part(params), h, context, run.part(keys))
            saved.append(stacked)
        return h, RepeatResiduals(params, tuple(context), saved)

    def backward(res: RepeatResiduals, g: jax.Array) -> tuple[PyTree, PyTree, None]:
        parts: list[PyTree] = []
        dcontext: PyTree = None
        for run, stacked in reversed(list(zip(runs, res.runs, strict=True))):
            params = run.part(res.params)
            dparams, g, dc = _backward_loop(run, params, res.context, stacked, g)
            parts.insert(0, run.whole(dparams))
            dcontext = add_cotangents(dcontext, dc)
        dparams = (
            parts[0] if len(parts) == 1 else jax.tree.map(lambda *p: jnp.concatenate(p), *parts)
        )
        return dparams, _x(g, dcontext or ()), None

    reference.__name__ = "repeat"
    reference.__doc__ = f"{layer.name}, {n} times, one after the other."
    return Layer(reference, forward, backward, init=stacked_init(layer.init, n))


def _runs(layer: Layer, n: int, save: int | None) -> list[Run]:
    """One loop over single blocks, or over segments of `save` blocks and what is left."""
    if save is None:
        return [Run(Passes(layer.forward, layer.backward), 0, n, 1)]
    check_count("repeat", save, "save")
    if save > n:
        raise ValueError(
            f"repeat: save must be at most n, which is {n}, got {save}. save={n} saves the input "
            "of the stack alone."
        )
    whole, rest = divmod(n, save)
    runs = [Run(_segment(layer, save), 0, whole, save)]
    if rest:
        runs.append(Run(_segment(layer, rest), whole * save, 1, rest))
    return runs


def _segment(layer: Layer, length: int) -> Passes:
    """Several repetitions taken as one, of which the input is saved and all else made again."""
    if length == 1:
        alone = checkpointed(layer)
        return Passes(alone.forward, alone.backward)
    inner = Run(Passes(layer.forward, layer.backward), 0, length, 1)

    def forward(params: PyTree, x: PyTree, keys: jax.Array | None) -> tuple[jax.Array, PyTree]:
        def step(h: jax.Array, at: tuple) -> tuple[jax.Array, None]:
            return like("repeat", h, layer.forward(at[0], _x(h, context), at[1])[0]), None

        h, *context = _parts(x)
        return lax.scan(step, h, (params, keys), length=length)[0], (params, x, keys)

    def backward(saved: PyTree, g: jax.Array) -> tuple[PyTree, PyTree, None]:
        params, x, keys = saved
        # Past the barrier, or XLA sees the same forward twice and keeps the first one's residuals.
        params, x, g = lax.optimization_barrier((params, x, g))
        h, *context = _parts(x)
        _, stacked = _forward_loop(inner, params, h, context, keys)
        dparams, dh, dcontext = _backward_loop(inner, params, context, stacked, g)
        return dparams, _x(dh, dcontext), None

    return Passes(forward, backward)


def _forward_loop(
    run: Run, params: PyTree, h: jax.Array, context: Sequence, keys: jax.Array | None
) -> tuple[jax.Array, Stacked]:
    """Every h_k in turn: (h_n, what backward needs of each repetition)."""
    shared, found = jax.tree.leaves(context), {}

    def step(h: jax.Array, at: tuple) -> tuple[jax.Array, list[jax.Array]]:
        y, saved = run.passes.forward(at[0], _x(h, context), at[1])
        leaves, found["whole"] = jax.tree.flatten(saved)
        found["places"], own = _placed(leaves, (jax.tree.leaves(at[0]), shared))
        return like("repeat", h, y), own

    h, own = lax.scan(step, h, (params, keys), length=run.times)
    return h, Stacked(own, found["whole"], found["places"])


def _backward_loop(
    run: Run, params: PyTree, context: Sequence, saved: Stacked, g: jax.Array
) -> tuple[PyTree, jax.Array, PyTree]:
    """The same in reverse: (every dparams_k, stacked, dh_0, dcontext as context is)."""
    shared: list[jax.Array]
    structure: Any
    shared, structure = jax.tree.flatten(tuple(context))

    def step(carry: tuple, at: tuple) -> tuple[tuple, PyTree]:
        g, total = carry
        trees = jax.tree.leaves(at[0]), shared, at[1]
        leaves = [trees[tree][place] for tree, place in saved.places]
        dparams, dx, _ = run.passes.backward(saved.whole.unflatten(leaves), g)
        dh, *dcontext = _parts(dx)
        return (jnp.zeros_like(g) if dh is None else dh, added(total, dcontext)), dparams

    def added(total: list, dcontext: list) -> list:
        if not dcontext or dcontext[0] is None:
            return total
        parts = structure.flatten_up_to(tuple(dcontext))
        pairs = zip(total, parts, strict=True)
        return [t if d is None else t + d.astype(t.dtype) for t, d in pairs]

    start = g, [_total(leaf) for leaf in shared]
    (dh, total), dparams = lax.scan(
        step, start, (params, saved.own), length=run.times, reverse=True
    )
    return dparams, dh, structure.unflatten(total)


def _placed(
    leaves: list[jax.Array], known: tuple[list[jax.Array], ...]
) -> tuple[tuple[tuple[int, int], ...], list[jax.Array]]:
    """Where each leaf is found: in a known tree, or in the list, returned too, of all others."""
    own: list[jax.Array] = []
    places = {id(leaf): (tree, i) for tree, all in enumerate(known) for i, leaf in enumerate(all)}
    for leaf in leaves:
        if id(leaf) not in places:
            places[id(leaf)] = len(known), len(own)
            own.append(leaf)
    return tuple(places[id(leaf)] for leaf in leaves), own


def _total(leaf: jax.Array) -> jax.Array | None:
    """What the cotangents of a leaf of the context are added to; None where it has none."""
    return accumulator(leaf, [leaf]) if jnp.issubdtype(leaf.dtype, jnp.inexact) else None


def _parts(x: PyTree) -> tuple:
    """(h,), or (h, context)."""
    return x if isinstance(x, tuple) else (x,)


def _x(h: jax.Array, context: Sequence) -> PyTree:
    """What a block takes as x, or gives as dx: h, and the context where there is one."""
    return (h, *context) if context else h
