"""A stack of one layer, n times: one loop forward, and its reverse backward."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.array_types import accumulator, vary, varying_axes
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


def repeat(block: Rule, n: int, *, save: int | None = None, frozen: int = 0) -> Layer:
    """Make a stack of one layer n times, each with parameters of its own: one loop, compiled once.

    Use it for the blocks of a transformer: time and size of the compilation do not grow with
    depth. What is saved is a choice: everything that the block's rules ask for, or the input of
    every save-th block alone, from which backward runs that many blocks again: about one more
    forward in all, for a memory of n / save inputs and the residuals of `save` blocks.

    Forward    h_k = block(params_k, h_{k-1}, context), k = 1..n
    Backward   dparams_k, dh_{k-1}, dcontext_k = block.backward(res_k, dh_k), k = n..frozen+1
               dcontext = dcontext_{frozen+1} + .. + dcontext_n

    Args:
        block: a Layer, or a Rule of one array, whose output has the shape and dtype of h.
        n: how often; positive.
        save: None to save all residuals, 1 for the input of every block, 2 for that of every
            second, ... The result is the same. Where it does not divide n, the last blocks are a
            shorter loop of their own, and parameters are copied to cut them in two.
        frozen: how many of the first repetitions are not trained. Their output is a constant: the
            backward pass ends there, and neither their params nor h_0 have a cotangent.

    Returns:
        A Layer; params are those of the block, each leaf with a first axis of n. x is h_0, or a
        tuple (h_0, context), where the context is a pytree that every block gets as it is, the
        block's x being (h, context). Given a key, the repetition at position k (from 0) gets
        `jax.random.fold_in(key, k)`.

    Residuals: those of every repetition, stacked; params and context among them are not copied,
        and what a block saves twice is saved once. With save, the inputs alone. Frozen repetitions
        save nothing.

    Numerics: dcontext is summed in float32 at least. dparams is 0 where repetitions are frozen.

    Raises:
        TypeError: where the block is neither a layer nor a rule of one array.
        ValueError: where n or save is not a positive integer, save is more than n, or frozen does
            not lie from 0 to n; when called, where a leaf of params has not n as its first axis, or
            the block's output has another shape or dtype than h.

    Source: for save, Chen et al. (2016), Training deep nets with sublinear memory cost.
    """
    layer = as_layer("repeat", block, "the block")
    check_count("repeat", n)
    _check_frozen(frozen, n)
    runs = _runs(layer, n, save, frozen)

    def reference(params: PyTree, x: PyTree, key: jax.Array | None = None) -> jax.Array:
        def step(h: jax.Array, at: tuple) -> tuple[jax.Array, None]:
            return like("repeat", h, layer.reference(at[0], _x(h, context), at[1])), None

        def through(h: jax.Array, start: int, stop: int) -> jax.Array:
            part = jax.tree.map(lambda leaf: lax.slice_in_dim(leaf, start, stop), every)
            return lax.scan(step, h, part, length=stop - start)[0]

        check_stacked("repeat", params, n)
        (h, *context), every = _parts(x), (params, keys_of(key, n))
        h = carried(h, params)
        if frozen:
            h = lax.stop_gradient(through(h, 0, frozen))
        return through(h, frozen, n)

    def forward(
        params: PyTree, x: PyTree, key: jax.Array | None
    ) -> tuple[jax.Array, RepeatResiduals]:
        check_stacked("repeat", params, n)
        (h, *context), keys, saved = _parts(x), keys_of(key, n), []
        h = carried(h, params)
        if frozen:
            h = _constant(layer, frozen, params, h, context, key)
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
        if frozen == n:
            return None, _x(None, jax.tree.map(lambda leaf: None, res.context)), None
        if frozen:
            parts.insert(0, jax.tree.map(lambda d: _zeros_before(d, frozen), parts[0]))
        dparams = (
            parts[0] if len(parts) == 1 else jax.tree.map(lambda *p: jnp.concatenate(p), *parts)
        )
        return dparams, _x(None if frozen else g, dcontext or ()), None

    reference.__name__ = "repeat"
    reference.__doc__ = f"{layer.name}, {n} times, one after the other."
    return Layer(reference, forward, backward, init=stacked_init(layer.init, n))


def _runs(layer: Layer, n: int, save: int | None, frozen: int) -> list[Run]:
    """One loop over single blocks, or over segments of `save` blocks and what is left."""
    if save is not None:
        check_count("repeat", save, "save")
        if save > n:
            raise ValueError(
                f"repeat: save must be at most n, which is {n}, got {save}. save={n} saves the "
                "input of the stack alone."
            )
    if frozen == n:
        return []
    if save is None:
        return [Run(Passes(layer.forward, layer.backward), frozen, n - frozen, 1)]
    whole, rest = divmod(n - frozen, save)
    runs = [Run(_segment(layer, save), frozen, whole, save)] if whole else []
    if rest:
        runs.append(Run(_segment(layer, rest), n - rest, 1, rest))
    return runs


def _constant(
    layer: Layer, k: int, params: PyTree, h: jax.Array, context: Sequence, key: jax.Array | None
) -> jax.Array:
    """h_k, of which backward reads nothing; params are indexed in the loop: no part is copied."""

    def step(i: jax.Array, h: jax.Array) -> jax.Array:
        p, at = jax.tree.map(
            lambda leaf: lax.dynamic_index_in_dim(leaf, i, keepdims=False), (params, keys)
        )
        return like("repeat", h, layer.forward(p, _x(h, context), at)[0])

    keys = keys_of(key, k)
    return lax.stop_gradient(lax.fori_loop(0, k, step, h))


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


def _zeros_before(d: jax.Array, k: int) -> jax.Array:
    """Zeros for the k repetitions before those of d."""
    return vary(jnp.zeros((k, *d.shape[1:]), d.dtype), varying_axes(d))


def _check_frozen(frozen: int, n: int) -> None:
    if isinstance(frozen, bool) or not isinstance(frozen, int) or not 0 <= frozen <= n:
        raise ValueError(
            f"repeat: frozen must be an integer from 0 to n, which is {n}, got {frozen!r}. It is a "
            "number of repetitions, counted from the first."
        )


def _total(leaf: jax.Array) -> jax.Array | None:
    """What the cotangents of a leaf of the context are added to; None where it has none."""
    return accumulator(leaf, [leaf]) if jnp.issubdtype(leaf.dtype, jnp.inexact) else None


def _parts(x: PyTree) -> tuple:
    """(h,), or (h, context)."""
    return x if isinstance(x, tuple) else (x,)


def _x(h: jax.Array | None, context: Sequence) -> PyTree:
    """What a block takes as x, or gives as dx: h, and the context where there is one."""
    return (h, *context) if context else h
