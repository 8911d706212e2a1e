"""Attention in tiles: queries of some heads against some keys, so that T x S is never held.

The softmax of a row is gathered tile by tile: its maximum and total so far, and the weighted sum
of values that belongs to them, all rescaled when the maximum grows. Backward rebuilds the
probabilities of a tile from the row's maximum and total: from the logarithm of both in one number
they would be off by the rounding of that number, as much as the scores are large. What a tile
computes is marked with the lines of `attention`, whose mathematics it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprop.array_types import accumulator
from jaxprop.precision import matmul, up
from jaxprop.rules.attention_operands import Operands, Reach


class Tile(NamedTuple):
    """Where a tile begins, and the first row and column of it that no tile before it has."""

    head: jax.Array
    q_start: jax.Array
    q_new: jax.Array
    k_start: jax.Array
    k_new: jax.Array


class Tiles(NamedTuple):
    """All tiles of one size that are not wholly out of reach, one after the other."""

    heads: int  # key heads, with the query heads they serve
    queries: int
    keys: int
    starts: Tile


def tiles_of(
    queries: int, keys: int, reach: Reach, block_size: int, key_heads: int = 1, groups: int = 1
) -> Tiles:
    """Cut T x S of every head into tiles of about block_size ** 2 entries.

    A tile is of one key head with the `groups` query heads that share it, for one large product
    is faster than several small ones; or of several, as many as fit a quarter of the entries. All
    tiles have the same size: the last ones reach back into those before them.
    """
    if not queries or not keys or not key_heads:
        return Tiles(key_heads, queries, keys, Tile(*np.zeros((5, 0), np.int32)))
    area = max(1, block_size * block_size // groups)
    wide = min(keys, max(1, area // min(queries, ceil(block_size / groups))))
    m, n = _even(queries, min(queries, max(1, area // wide))), _even(keys, wide)
    most = max(1, area // (4 * m * n))
    heads = max(d for d in range(1, key_heads + 1) if key_heads % d == 0 and d <= most)
    starts = [
        (head, min(i, queries - m), i, min(j, keys - n), j)
        for head in range(0, key_heads, heads)
        for i in range(0, queries, m)
        for j in range(0, keys, n)
        if reach.sees_any(i, min(i + m, queries) - 1, j, min(j + n, keys) - 1)
    ]
    return Tiles(heads, m, n, Tile(*np.array(starts, np.int32).reshape(-1, 5).T))


def _even(length: int, block: int) -> int:
    """The size of blocks that cover the length, as many as blocks of this size would be."""
    return ceil(length / ceil(length / block))


def _tiles(o: Operands) -> Tiles:
    queries, heads = o.q.shape[1:3]
    groups, block_size = heads // o.key_heads, o.block_size
    if o.reach.window is not None and not _is_short(o):  # of large tiles most would be out of reach
        block_size = min(block_size, max(128, o.reach.window // 2))
    return tiles_of(queries, o.k.shape[1], o.reach, block_size, o.key_heads, groups)


def _is_short(o: Operands) -> bool:
    return o.q.shape[1] * o.k.shape[1] <= o.block_size**2


@jax.jit  # so that a call outside of jit compiles its loop once
def forward_in_tiles(o: Operands) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(out, each row's largest z, its total), (B, T, H, D) and twice (B, T, H, 1)."""
    tiles = _tiles(o)

    def step(whole: list[jax.Array], starts: Tile) -> tuple[list[jax.Array], None]:
        tile = _Tile(o, tiles, starts)
        weighted, total, largest = map(tile.queries, whole)
        _, z = tile.scores()
        highest = jnp.max(z, axis=-1, keepdims=True, initial=-jnp.inf)
        higher = lax.stop_gradient(jnp.maximum(largest, highest))
        e, kept = jnp.exp(z - _finite(higher)), jnp.exp(largest - _finite(higher))  # F4
        v = tile.keys(o.v)
        weighted = kept * weighted + matmul(e.astype(v.dtype), v)
        total = kept * total + jnp.sum(e, axis=-1, keepdims=True)  # F5
        found = zip(whole, (weighted, total, higher), strict=True)
        return [tile.set_queries(x, rows) for x, rows in found], None

    nothing = accumulator(o.q, o.arrays)
    column = nothing[..., :1]
    whole = _over_tiles(step, [nothing, column, column - jnp.inf], o, tiles)
    weighted, total, largest = whole
    total = jnp.where(total > 0, total, 1)
    return (weighted / total).astype(o.q.dtype), _finite(largest), total  # F6, F7


@jax.jit
def backward_in_tiles(
    o: Operands, out: jax.Array, largest: jax.Array, total: jax.Array, g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """(dq, dk, dv, dscale, dbias); each probability and its gradients in one visit of its tile.

    The sum of dp * p over a row is taken as it stands where a tile holds whole rows, and else, as
    B3 has it, from out: it must be known before the row's first tile is left.
    """
    tiles = _tiles(o)
    # As a product: XLA's sum over the last of four axes takes much longer on a CPU.
    exact = lax.Precision.HIGHEST
    delta = jnp.einsum("bthd,bthd->bth", up(g), up(out), precision=exact)  # B3, times -total
    delta = delta[..., None]
    whole_rows = tiles.keys == o.k.shape[1]

    def step(whole: list[Any], starts: Tile) -> tuple[list, None]:
        tile = _Tile(o, tiles, starts)
        dq, dk, dv, dbias = whole
        q, k, v, g_rows = tile.queries(o.q), tile.keys(o.k), tile.keys(o.v), tile.queries(g)
        c, z = tile.scores()
        p = jnp.exp(z - tile.queries(largest)) / tile.queries(total)  # F4 to F6
        dp = matmul(g_rows, v.mT)  # B2
        row = jnp.sum(p * dp, axis=-1, keepdims=True) if whole_rows else tile.queries(delta)
        dz = p * (dp - row)  # B4, B5
        ds = dz if o.soft_cap is None else dz * (1 - (c / o.soft_cap) ** 2)  # B7
        return [
            tile.set_queries(dq, tile.queries(dq) + matmul(ds, k)),  # B9
            tile.set_keys(dk, tile.keys(dk) + matmul(up(q).mT, ds).mT),  # B10
            tile.set_keys(dv, tile.keys(dv) + matmul(g_rows.mT, p).mT),  # B1
            None if dbias is None else tile.add_entries(dbias, dz),  # B6
        ], None

    terms = [*o.arrays, g]
    start: list[Any] = [
        None if x is None else accumulator(x, terms) for x in (o.q, o.k, o.v, o.bias)
    ]
    dq, dk, dv, dbias = _over_tiles(step, start, o, tiles)
    dscale = jnp.sum(up(o.q) * dq)  # B8
    return o.scale * dq, o.scale * dk, dv, dscale, dbias


def _over_tiles(step: Callable, start: list[Any], o: Operands, tiles: Tiles) -> list[Any]:
    """What the steps make of the start.

    Short sequences take four tiles at a time, whose products XLA then runs side by side: less time,
    for the memory of four tiles.
    """
    return lax.scan(step, start, tiles.starts, unroll=4 if _is_short(o) else 1)[0]


def _finite(largest: jax.Array) -> jax.Array:
    """The maximum to shift by: 0 for a row that has seen no key."""
    return jnp.where(largest == -jnp.inf, 0, largest)


@dataclass(frozen=True)
class _Tile:
    """One tile: what it reads of whole arrays, and writes into them.

    Its rows are (B, heads, G * queries, D) and (B, heads, keys, D): the G query heads that share
    a key head lie side by side, so that every product is one of matrices.
    """

    o: Operands
    tiles: Tiles
    starts: Tile

    def queries(self, x: jax.Array) -> jax.Array:
        return self._rows(x, self.starts.q_start, self.tiles.queries)

    def keys(self, x: jax.Array) -> jax.Array:
        return self._rows(x, self.starts.k_start, self.tiles.keys)

    def _rows(self, x: jax.Array, start: jax.Array, size: int) -> jax.Array:
        x = self._by_key_head(x)
        batch, _, _, groups, width = x.shape
        starts = (0, start, self.starts.head, 0, 0)
        rows = _slice(x, starts, (batch, size, self.tiles.heads, groups, width))
        return rows.transpose(0, 2, 3, 1, 4).reshape(batch, self.tiles.heads, groups * size, width)

    def _by_key_head(self, x: jax.Array) -> jax.Array:
        """(B, T, H, D) as (B, T, KV, G, D)."""
        batch, length, heads, width = x.shape
        return x.reshape(batch, length, self.o.key_heads, heads // self.o.key_heads, width)

    def set_queries(self, x: jax.Array, rows: jax.Array) -> jax.Array:
        return self._set_rows(x, rows, self.starts.q_start, self.tiles.queries)

    def set_keys(self, x: jax.Array, rows: jax.Array) -> jax.Array:
        return self._set_rows(x, rows, self.starts.k_start, self.tiles.keys)

    def _set_rows(self, x: jax.Array, rows: jax.Array, start: jax.Array, size: int) -> jax.Array:
        whole = self._by_key_head(x)
        batch, _, _, groups, width = whole.shape
        rows = rows.reshape(batch, self.tiles.heads, groups, size, width)
        rows = rows.transpose(0, 3, 1, 2, 4)
        return _update(whole, rows, (0, start, self.starts.head, 0, 0)).reshape(x.shape)

    def scores(self) -> tuple[jax.Array, jax.Array]:
        """(c, z) of this tile; z is -inf where the query does not see the key."""
        o = self.o
        s = o.scale * matmul(self.queries(o.q), self.keys(o.k).mT)  # F1
        c = s if o.soft_cap is None else o.soft_cap * jnp.tanh(s / o.soft_cap)  # F2
        z = self._by_head(c)
        if o.bias is not None:
            z = z + up(self._entries(o.bias))  # F3
        return c, jnp.where(self._visible(), z, -jnp.inf).reshape(c.shape)

    def _by_head(self, x: jax.Array) -> jax.Array:
        """(B, heads, G * queries, keys) as (B, heads, G, queries, keys)."""
        batch, heads, rows, keys = x.shape
        return x.reshape(batch, heads, rows // self.tiles.queries, self.tiles.queries, keys)

    def _grouped(self, x: jax.Array) -> jax.Array:
        """(B, H, T, S) as (B, KV, G, T, S), any of the axes 1."""
        batch, heads, *entries = x.shape
        by_head = (1, 1) if heads == 1 else (self.o.key_heads, heads // self.o.key_heads)
        return x.reshape(batch, *by_head, *entries)

    def _visible(self) -> jax.Array:
        """Where the tile counts: its new entries, those in reach, of one segment, unmasked."""
        o, starts = self.o, self.starts
        q_at = starts.q_start + jnp.arange(self.tiles.queries, dtype=jnp.int32)[:, None]
        k_at = starts.k_start + jnp.arange(self.tiles.keys, dtype=jnp.int32)
        seen = (q_at >= starts.q_new) & (k_at >= starts.k_new) & o.reach.sees(q_at, k_at)
        seen = seen[None, None, None]
        if o.q_segments is not None and o.k_segments is not None:
            q = lax.dynamic_slice_in_dim(o.q_segments, starts.q_start, self.tiles.queries, 1)
            k = lax.dynamic_slice_in_dim(o.k_segments, starts.k_start, self.tiles.keys, 1)
            seen = seen & (q[:, None, None, :, None] == k[:, None, None, None, :])
        return seen if o.mask is None else seen & self._entries(o.mask)

    def _entries(self, x: jax.Array) -> jax.Array:
        """This tile's entries of a mask or bias; an axis of length 1 stays."""
        return _slice(self._grouped(x), *self._span(self._grouped(x)))

    def _span(self, x: jax.Array) -> tuple[tuple, tuple]:
        """The starts and sizes of this tile's part of (B, KV, G, T, S), any of the axes 1."""
        tiles, starts = self.tiles, self.starts
        tile_starts = (0, starts.head, 0, starts.q_start, starts.k_start)
        sizes = (x.shape[0], tiles.heads, x.shape[2], tiles.queries, tiles.keys)
        whole = [n == 1 for n in x.shape]
        return (
            tuple(0 if one else start for one, start in zip(whole, tile_starts, strict=True)),
            tuple(1 if one else size for one, size in zip(whole, sizes, strict=True)),
        )

    def add_entries(self, total: jax.Array, dz: jax.Array) -> jax.Array:
        """The total of a bias's cotangent and this tile's, summed over what the bias broadcasts."""
        whole = self._grouped(total)
        starts, sizes = self._span(whole)
        axes = tuple(i for i, n in enumerate(sizes) if n == 1)
        new = _slice(whole, starts, sizes) + jnp.sum(self._by_head(dz), axis=axes, keepdims=True)
        return _update(whole, new, starts).reshape(total.shape)


def _slice(x: jax.Array, starts: tuple, sizes: tuple[int, ...]) -> jax.Array:
    return lax.dynamic_slice(x, tuple(map(jnp.int32, starts)), sizes)


def _update(x: jax.Array, part: jax.Array, starts: tuple) -> jax.Array:
    return lax.dynamic_update_slice(x, part, tuple(map(jnp.int32, starts)))
