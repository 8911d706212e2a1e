"""Low-rank adapters for the matrices of a transformer's blocks: put in, and merged."""

import math

import jax
import jax.numpy as jnp

from jaxprop.installing import PyTree
from jaxprop.models.projections import Adapted
from jaxprop.precision import at_least_float32, up
from jaxprop.rules.penalties import Filter, path_name, select


def adapt(params: PyTree, patterns: Filter, rank: int, alpha: float, key: jax.Array) -> PyTree:
    """Put adapters of low rank beside matrices of a language model's blocks.

    The network computes what it did: b starts at 0. To train the adapters alone, freeze the rest:
    `freeze(model.cost, other_than_adapters)`.

    Args:
        params: of `gpt2` or `llama`.
        patterns: which matrices, as `freeze` has it: "blocks/attention/*", ("*/w_q", "*/w_v"), ...;
            None for all.
        rank: the width between a and b.
        alpha: what a @ b is multiplied by is alpha / rank.
        key: of a, which is uniform within 1 / sqrt(n_in).

    Returns:
        params with an `Adapted` in the place of each of those matrices: at blocks/attention/w_q/a,
        (depth, n_in, rank), and blocks/attention/w_q/b, (depth, rank, n_out), with the matrix as
        it was at blocks/attention/w_q/w. a and b have its dtype, float32 at least.

    Raises:
        ValueError: where a pattern matches no matrix of the blocks that has no adapter yet, rank is
            not a positive whole number, or alpha is not finite and above 0.

    Source: Hu et al. (2021), LoRA: low-rank adaptation of large language models.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"adapt: rank must be a positive whole number, got {rank!r}.")
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"adapt: alpha must be finite and above 0, got {alpha!r}.")
    is_matrix = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if _is_bare_matrix(path_name(path)) else None, params
    )
    for pattern in patterns if isinstance(patterns, tuple) else (patterns,):
        select("adapt", "patterns", is_matrix, pattern)
    chosen = select("adapt", "patterns", is_matrix, patterns)
    places = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(chosen)]
    keys = dict(zip(places, jax.random.split(key, len(places)), strict=True))

    def put(path: tuple, leaf: jax.Array) -> jax.Array | Adapted:
        if path_name(path) not in keys:
            return leaf
        return _adapted(leaf, rank, alpha / rank, keys[path_name(path)])

    return jax.tree_util.tree_map_with_path(put, params)


def merge(params: PyTree) -> PyTree:
    """params as they are without adapters: w + scale * a @ b in the place of each `Adapted`."""

    def merged(leaf: jax.Array | Adapted) -> jax.Array:
        if not isinstance(leaf, Adapted):
            return leaf
        update = leaf.scale * jnp.matmul(up(leaf.a), up(leaf.b))
        return (up(leaf.w) + update.astype(up(leaf.w).dtype)).astype(leaf.w.dtype)

    return jax.tree.map(merged, params, is_leaf=_is_adapted)


def adapters(params: PyTree) -> dict[str, Adapted]:
    """The matrices with adapters, by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=_is_adapted)
    return {path_name(path): leaf for path, leaf in leaves if isinstance(leaf, Adapted)}


def other_than_adapters(path: str) -> bool:
    """A filter for `freeze`: every leaf but those of adapters."""
    *_, matrix, leaf = ("", *path.split("/"))
    return not (matrix.startswith("w_") and leaf in ("a", "b"))


def _is_bare_matrix(path: str) -> bool:
    """A matrix of a block that has no adapter: of one that has, the path ends in w, a or b."""
    return path.startswith("blocks/") and path.split("/")[-1].startswith("w_")


def _is_adapted(node: PyTree) -> bool:
    return isinstance(node, Adapted)


def _adapted(w: jax.Array, rank: int, scale: float, key: jax.Array) -> Adapted:
    depth, n_in, n_out = w.shape
    dtype, bound = at_least_float32(w.dtype), n_in**-0.5
    a = jax.random.uniform(key, (depth, n_in, rank), dtype, -bound, bound)
    return Adapted(w, a, jnp.zeros((depth, rank, n_out), dtype), scale)
