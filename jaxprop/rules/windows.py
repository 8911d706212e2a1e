"""Windows that slide over the spatial axes of x (B, *spatial, C): what they see, and back again."""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprop.precision import floating

Padding = str | tuple[tuple[int, int], ...]

AXES = (1, 2, 3)  # how many spatial axes there may be


@dataclass(frozen=True)
class Windows:
    """Windows over x, one entry per spatial axis in each field.

    spatial: the lengths of x.
    window:  how many entries a window sees.
    stride:  by how much the next window lies further on.
    padding: how many entries stand before and after x.
    """

    spatial: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """How many windows there are."""
        axes = zip(self.spatial, self.window, self.stride, self.padding, strict=True)
        return tuple((n + low + high - k) // s + 1 for n, k, s, (low, high) in axes)

    @property
    def places(self) -> int:
        """How many entries a window has, numbered from 0 with the last axis fastest."""
        return prod(self.window)

    @property
    def padded(self) -> bool:
        return any(map(any, self.padding))


def check_windows(
    owner: str,
    x: jax.Array,
    window: tuple[int, ...],
    stride: tuple[int, ...],
    padding: Padding,
) -> Windows:
    """The windows of a pooling; TypeError or ValueError where they do not fit x."""
    check_spatial(owner, floating(owner, "x", x))
    spatial = x.shape[1:-1]
    check_per_axis(owner, "window", window, spatial)
    check_per_axis(owner, "stride", stride, spatial)
    pairs = check_padding(owner, padding, spatial, window, stride)
    if any(max(pair) >= k for pair, k in zip(pairs, window, strict=True)):
        raise ValueError(
            f"{owner}: padding must be less than the window {window} on either side, got {pairs}. "
            "A window further out would see no entry of x."
        )
    check_fit(owner, spatial, window, pairs)
    return Windows(spatial, window, stride, pairs)


def check_spatial(owner: str, x: jax.Array) -> None:
    if x.ndim - 2 not in AXES:
        raise ValueError(
            f"{owner}: x must be (B, *spatial, C) with 1 to 3 spatial axes, got {x.shape}. "
            "Channels are the last axis; give one example a batch axis of 1."
        )


def check_per_axis(owner: str, name: str, value: tuple[int, ...], spatial: Sequence[int]) -> None:
    """ValueError where `value` is not one positive integer per spatial axis."""
    fits = isinstance(value, tuple) and len(value) == len(spatial)
    if not fits or any(not isinstance(n, int) or n < 1 for n in value):
        raise ValueError(
            f"{owner}: {name} must be a tuple of {len(spatial)} positive integers, one per spatial "
            f"axis of x, got {value!r}."
        )


def check_padding(
    owner: str,
    padding: Padding,
    spatial: Sequence[int],
    extent: Sequence[int],
    stride: Sequence[int],
) -> tuple[tuple[int, int], ...]:
    """The padding as pairs; ValueError where it is none. `extent` is what a window spans.

    SAME gives ceil(n / stride) windows, the odd entry of padding after x; VALID has no padding.
    """
    if isinstance(padding, str) and padding in ("SAME", "VALID"):
        found = lax.padtype_to_pads(spatial, extent, stride, padding)
        return tuple((int(low), int(high)) for low, high in found)
    fits = isinstance(padding, tuple) and len(padding) == len(spatial)
    if isinstance(padding, str) or not fits or not all(map(_is_pair, padding)):
        raise ValueError(
            f"{owner}: padding must be 'SAME', 'VALID' or a tuple of {len(spatial)} pairs "
            f"(low, high) of integers of at least 0, one per spatial axis of x, got {padding!r}."
        )
    return tuple((low, high) for low, high in padding)


def _is_pair(pair: object) -> bool:
    if not isinstance(pair, tuple) or len(pair) != 2:
        return False
    return all(isinstance(n, int) and n >= 0 for n in pair)


def check_fit(
    owner: str,
    spatial: Sequence[int],
    extent: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> None:
    """ValueError where no window of this extent fits in x and its padding."""
    axes = zip(spatial, extent, padding, strict=True)
    if any(n < 1 or n + low + high < k for n, k, (low, high) in axes):
        raise ValueError(
            f"{owner}: a window must fit in x and its padding, got one that spans {tuple(extent)} "
            f"for spatial axes {tuple(spatial)} padded by {tuple(padding)}. Use a smaller window, "
            "or padding 'SAME'."
        )


def views(x: jax.Array, at: Windows, fill: float) -> Iterator[jax.Array]:
    """For each place of a window, what the windows see there: (B, *counts, C); fill is padding."""
    if at.padded:
        spatial = [(low, high, 0) for low, high in at.padding]
        x = lax.pad(x, jnp.asarray(fill, x.dtype), [(0, 0, 0), *spatial, (0, 0, 0)])
    starts = product(*map(range, at.window))
    yield from (seen_from(x, start, at.counts, at.stride) for start in starts)


def seen_from(
    x: jax.Array, start: Sequence[int], counts: Sequence[int], stride: Sequence[int]
) -> jax.Array:
    """So many entries of each spatial axis, from a start on and a stride apart."""
    stop = [i + reach(n, s) for i, n, s in zip(start, counts, stride, strict=True)]
    return lax.slice(x, (0, *start, 0), (len(x), *stop, x.shape[-1]), (1, *stride, 1))


def reach(n: int, step: int) -> int:
    """The length of n entries that lie `step` apart."""
    return (n - 1) * step + 1


def laid_back(g: jax.Array, at: Windows, chosen: jax.Array | None = None) -> jax.Array:
    """The transpose of `views`: each entry of x gets the sum of g over the windows that see it.

    Where `chosen` is given, windows that see it at another place than their chosen one do not
    count. Nothing is scattered: x is cut into blocks of the stride, and block q is seen by window
    q, which starts with it, and by those that start a few blocks before.
    """
    blocks = [-(-(n + low) // s) for n, s, (low, _) in _axes(at)]
    reach = [-(-k // s) for k, s in zip(at.window, at.stride, strict=True)]
    g = _with_margins(g, 0, at, blocks, reach)
    chosen = None if chosen is None else _with_margins(chosen, -1, at, blocks, reach)
    within = tuple(2 + 2 * axis for axis in range(len(blocks)))  # the axes of places in a block
    terms = []
    for back in product(*map(range, reach)):
        starts = [most - 1 - j for most, j in zip(reach, back, strict=True)]
        seen = (slice(None), *(slice(i, i + n) for i, n in zip(starts, blocks, strict=True)))
        place = _places(at, back)
        hit = place >= 0 if chosen is None else jnp.expand_dims(chosen[seen], within) == place
        terms.append(jnp.where(hit, jnp.expand_dims(g[seen], within), 0))
    lengths = [n * s for n, s in zip(blocks, at.stride, strict=True)]
    whole = reduce(operator.add, terms).reshape(g.shape[0], *lengths, g.shape[-1])
    return whole[(slice(None), *(slice(low, low + n) for n, _, (low, _) in _axes(at)))]


def _axes(at: Windows) -> Iterator[tuple[int, int, tuple[int, int]]]:
    return zip(at.spatial, at.stride, at.padding, strict=True)


def _with_margins(
    g: jax.Array, fill: int, at: Windows, blocks: Sequence[int], reach: Sequence[int]
) -> jax.Array:
    """g with windows that do not exist before the first and after the last, for every block."""
    axes = zip(reach, blocks, at.counts, strict=True)
    spatial = [(most - 1, max(0, n - count), 0) for most, n, count in axes]
    return lax.pad(g, jnp.asarray(fill, g.dtype), [(0, 0, 0), *spatial, (0, 0, 0)])


def _places(at: Windows, back: Sequence[int]) -> np.ndarray:
    """The places of a block in the window that starts `back` blocks before it, -1 beyond it.

    To broadcast against (B, blocks, stride, ..., blocks, stride, C).
    """
    offsets = [s * j + np.arange(s) for s, j in zip(at.stride, back, strict=True)]
    grid = np.meshgrid(*offsets, indexing="ij")
    inside = np.all([k < n for k, n in zip(grid, at.window, strict=True)], axis=0)
    numbers = np.where(inside, _numbered(grid, at), -1).astype(place_dtype(at.places))
    return numbers.reshape(1, *(n for s in at.stride for n in (1, s)), 1)


def first_places(at: Windows) -> np.ndarray:
    """The number of the first place of each window that is not padding: (1, *counts, 1)."""
    axes = zip(at.counts, at.stride, at.padding, strict=True)
    firsts = [np.maximum(0, low - s * np.arange(n)) for n, s, (low, _) in axes]
    numbers = _numbered(np.meshgrid(*firsts, indexing="ij"), at)
    return numbers.astype(place_dtype(at.places))[None, ..., None]


def _numbered(offsets: Sequence[np.ndarray], at: Windows) -> np.ndarray:
    number = np.zeros_like(offsets[0])
    for offset, k in zip(offsets, at.window, strict=True):
        number = number * k + offset
    return number


def place_dtype(places: int) -> np.dtype:
    """The smallest integers that number so many places, and -1 for none."""
    kinds = (np.int8, np.int16, np.int32)
    return next(np.dtype(kind) for kind in kinds if places - 1 <= np.iinfo(kind).max)
