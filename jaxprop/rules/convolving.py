"""A convolution and its two transposes, each in the way that suits its shape.

XLA's convolution is fast on a CPU where its products are wide and its channels are in one group.
Where they are not, another way takes down to a twentieth of its time there (docs/performance.md);
what each is for stands with it. On other platforms, where nothing was measured, all is XLA's.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial, reduce
from itertools import product, starmap
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprop.array_types import vary, varying_axes
from jaxprop.precision import matmul, up
from jaxprop.rules.convolutions import Convolution, by_xla, counts, in_order, kernel_by_xla
from jaxprop.rules.windows import reach, seen_from

Way = Callable[[jax.Array, jax.Array], jax.Array]

# So many outputs XLA computes well at once; where there are fewer, those of neighbours with them,
# if a place has fewer weights than this.
WIDE, FEW = 32, 256

# A group's sum of so many terms is added up term by term.
TERMS = 64

# From so many channels and parts on the gradient of w is a product of its own, over parts of so
# many windows: what they see then fits into a cache.
CHANNELS, PARTS, ROWS = 32, 4, 2048


@partial(jax.jit, static_argnames="how")  # or a call outside of jit would compile both platforms'
def convolved(x: jax.Array, w: jax.Array, how: Convolution) -> jax.Array:
    """What by_xla gives."""
    w, xla = w.astype(x.dtype), partial(by_xla, how=how)
    if _small_groups(w.shape[:-1], how):
        return lax.platform_dependent(x, w, cpu=partial(_term_by_term, how=how), default=xla)
    neighbours = _neighbours(x, w, how)
    if neighbours == 1:
        return xla(x, w)
    side_by_side = partial(_side_by_side, how=how, neighbours=neighbours)
    return lax.platform_dependent(x, w, cpu=_if_finite(side_by_side, xla), default=xla)


def _if_finite(way: Way, xla: Way) -> Way:
    """For ways that multiply zeros where XLA multiplies nothing: of what is infinite they are nan.

    Under vmap both are computed. A batch of one, as is usual there, does without, but for
    _exchanged, next to which XLA's way takes so long that it makes no difference.
    """

    def run(a: jax.Array, b: jax.Array) -> jax.Array:
        finite = jnp.all(jnp.isfinite(a)) & jnp.all(jnp.isfinite(b))
        return lax.cond(finite, way, xla, a, b)

    return run


def to_input(g: jax.Array, w: jax.Array, how: Convolution, spatial: Sequence[int]) -> jax.Array:
    """The cotangent of x, whose spatial axes have these lengths.

    The convolution of g with w turned round and its channels exchanged within each group. Stride
    and spread change places, and so much padding is added that every entry of w meets every g.
    """
    padding = []
    lengths = zip(spatial, g.shape[1:-1], w.shape[:-2], strict=True)
    for axis, (n, count, k) in enumerate(lengths):
        margin = (k - 1) * how.dilation[axis]
        before = margin - how.padding[axis][0]
        whole = reach(n, how.spread[axis]) + margin
        padding.append((before, whole - reach(count, how.stride[axis]) - before))
    back = Convolution(how.spread, tuple(padding), how.dilation, how.stride, how.groups)
    return convolved(g, _turned_round(w, how.groups), back)


def _turned_round(w: jax.Array, groups: int) -> jax.Array:
    """(*window, C_out / groups, C_in), the window back to front."""
    *window, width, outputs = w.shape
    flipped = jnp.flip(w, range(len(window)))
    split = flipped.reshape(*window, width, groups, outputs // groups)
    exchanged = jnp.moveaxis(split, (-1, -2), (-3, -2))  # C_out / groups, groups, C_in / groups
    return exchanged.reshape(*window, outputs // groups, groups * width)


@partial(jax.jit, static_argnames=("how", "window"))
def to_kernel(x: jax.Array, g: jax.Array, how: Convolution, window: tuple[int, ...]) -> jax.Array:
    """The cotangent of w, whose window this is."""
    xla = partial(kernel_by_xla, how=how, window=window)
    on_cpu = _kernel_on_cpu(x, g, how, window)
    way: Way = partial(on_cpu, how=how, window=window)
    if on_cpu in (_exchanged, _by_products):
        way = _if_finite(way, partial(_in_order, how=how, window=window))
    return lax.platform_dependent(x, g, cpu=way, default=xla)


def _kernel_on_cpu(
    x: jax.Array, g: jax.Array, how: Convolution, window: tuple[int, ...]
) -> Callable[..., jax.Array]:
    """The way to the cotangent of w."""
    if _small_groups((*window, x.shape[-1] // how.groups), how):
        return _place_by_place
    if max(how.spread) > max(how.stride):
        return _exchanged
    one_by_one = how.groups == max(*how.stride, *how.spread) == 1
    many = len(x) > 1 and prod(g.shape[:-1]) > PARTS * ROWS and x.shape[-1] >= CHANNELS
    return _by_products if one_by_one and many else _in_order


def _in_order(x: jax.Array, g: jax.Array, how: Convolution, window: tuple[int, ...]) -> jax.Array:
    return kernel_by_xla(x, g, how, window, in_order)


def _small_groups(terms: Sequence[int], how: Convolution) -> bool:
    return how.groups > 1 and 0 < prod(terms) <= TERMS


def _neighbours(x: jax.Array, w: jax.Array, how: Convolution) -> int:
    """How many neighbours to compute as one: they divide the last axis, and are no more than the
    window is wide, so that less than half of what is multiplied are zeros.
    """
    *_, width, channels, outputs = w.shape
    plain = how.groups == how.spread[-1] == how.dilation[-1] == 1
    if len(x) == 1 or channels * outputs >= FEW or not plain:
        return 1
    count = counts(x.shape[1:-1], w.shape[:-2], how)[-1]
    most = min(WIDE // max(1, outputs), width)
    return max((n for n in range(1, most + 1) if count % n == 0), default=1)


def _side_by_side(x: jax.Array, w: jax.Array, how: Convolution, neighbours: int) -> jax.Array:
    """So many neighbours along the last axis as outputs of one wider window.

    The window sees what all of them see; w stands in it once for each, a stride further on, and
    zeros around it. An odd number of channels, such as 3 colours, XLA reads one by one.
    """
    one_more = x.shape[-1] % 2 if x.shape[-1] > 1 else 0
    *others, stride = how.stride
    beyond = (neighbours - 1) * stride
    shifted = []
    for start in range(0, beyond + 1, stride):
        around = [(0, 0)] * (w.ndim - 3) + [(start, beyond - start), (0, one_more), (0, 0)]
        shifted.append(jnp.pad(w, around))
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, one_more)])
    wider = replace(how, stride=(*others, stride * neighbours))
    y = by_xla(x, jnp.concatenate(shifted, axis=-1), wider)
    *before, blocks, _ = y.shape
    apart = y.reshape(*before, blocks, neighbours, w.shape[-1])  # an Explicit mesh asks for it
    return apart.reshape(*before, blocks * neighbours, w.shape[-1])


def _term_by_term(x: jax.Array, w: jax.Array, how: Convolution) -> jax.Array:
    """The sum of what the windows see at a place, of one channel of each group, times w.

    For small groups, depthwise convolutions among them, of which XLA computes number by number.
    """
    groups, window = how.groups, w.shape[:-2]
    by_group = _grouped(up(w), groups)

    def term(place: tuple[int, ...], channel: int) -> jax.Array:
        x_there = up(_grouped(seen[place], groups)[..., channel, None])
        return jnp.where(inside[place][..., None], x_there * by_group[*place, channel], 0)

    seen, inside = (dict(_views(a, window, how)) for a in (x, _inside(x)))
    terms = starmap(term, product(seen, range(w.shape[-2])))
    y = reduce(operator.add, terms)
    return y.reshape(*y.shape[:-2], w.shape[-1])


def _place_by_place(
    x: jax.Array, g: jax.Array, how: Convolution, window: tuple[int, ...]
) -> jax.Array:
    """The cotangent of w for small groups; what is seen at one place alone is held."""
    number = counts(x.shape[1:-1], window, how)
    padded, inside = _padded(x, how), _padded(_inside(x), how)
    by_group = _grouped(up(g), how.groups)
    positions, zero = range(g.ndim - 1), jnp.int32(0)

    def seen_at(padded: jax.Array, place: jax.Array) -> jax.Array:
        lengths = (len(padded), *map(reach, number, how.stride), padded.shape[-1])
        seen = lax.dynamic_slice(padded, (zero, *place, zero), lengths)
        return seen_from(seen, (0,) * len(window), number, how.stride)

    def at(place: jax.Array) -> jax.Array:
        seen = _grouped(seen_at(padded, place), how.groups)
        there = seen_at(inside, place)[..., None]
        products = (up(seen[..., channel, None]) * by_group for channel in range(seen.shape[-1]))
        sums = [jnp.sum(jnp.where(there, each, 0), axis=positions) for each in products]
        return jnp.stack(sums).reshape(len(sums), g.shape[-1])

    places = np.indices(window).reshape(len(window), -1).T * np.asarray(how.dilation)
    dw = lax.map(at, jnp.asarray(places, jnp.int32))
    return dw.reshape(*window, x.shape[-1] // how.groups, g.shape[-1])


def _exchanged(x: jax.Array, g: jax.Array, how: Convolution, window: tuple[int, ...]) -> jax.Array:
    """The cotangent of w as that of the convolution that goes from g to x.

    For the transposed convolution: there x is no longer spread, which XLA's is slow with where the
    kernel is as large as g.
    """
    axes = zip(window, how.dilation, how.padding, strict=True)
    turned_round = tuple(
        ((k - 1) * dilation - low, (k - 1) * dilation - high) for k, dilation, (low, high) in axes
    )
    back = Convolution(how.spread, turned_round, how.dilation, how.stride, how.groups)
    turned = _in_order(g, x, back, window)
    return jnp.swapaxes(jnp.flip(turned, range(len(window))), -1, -2)


def _by_products(
    x: jax.Array, g: jax.Array, how: Convolution, window: tuple[int, ...]
) -> jax.Array:
    """The cotangent of w as one product, of some examples at a time.

    What the windows see at a place of the other axes lies side by side in x; along the last axis x
    stays as it is, and g lies side by side, once for each place and moved on by it.
    """
    *others, width = window
    step = how.dilation[-1]
    size = _examples(len(x), prod(g.shape[1:-1]))

    def moved(g: jax.Array, place: int) -> jax.Array:
        around = place * step, (width - 1 - place) * step
        return jnp.pad(g, [(0, 0)] * (g.ndim - 2) + [around, (0, 0)])

    def add(dw: jax.Array, some: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        x, g = map(up, some)
        seen = jnp.concatenate([view for _, view in _views(x, (*others, 1), how)], axis=-1)
        beside = jnp.concatenate([moved(g, place) for place in range(width)], axis=-1)
        return dw + matmul(_rows(seen).T, _rows(beside)), None

    shape = (prod(others) * x.shape[-1], width * g.shape[-1])
    dw = vary(jnp.zeros(shape, up(x).dtype), varying_axes(x) | varying_axes(g))
    parts = tuple(a.reshape(len(a) // size, size, *a.shape[1:]) for a in (x, g))
    dw, _ = lax.scan(add, dw, parts)
    by_place = dw.reshape(*others, x.shape[-1], width, g.shape[-1])
    return jnp.swapaxes(by_place, -2, -3)


def _examples(batch: int, positions: int) -> int:
    """How many to take at a time: a divisor of the batch."""
    most = max(1, ROWS // max(1, positions))
    return max((n for n in range(1, min(batch, most) + 1) if batch % n == 0), default=1)


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])


def _grouped(x: jax.Array, groups: int) -> jax.Array:
    return x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)


def _views(
    x: jax.Array, window: Sequence[int], how: Convolution
) -> Iterator[tuple[tuple[int, ...], jax.Array]]:
    """Each place of a window, and what the windows see there: (B, *counts, C)."""
    number = counts(x.shape[1:-1], window, how)
    padded = _padded(x, how)
    for place in product(*map(range, window)):
        start = [k * d for k, d in zip(place, how.dilation, strict=True)]
        yield place, seen_from(padded, start, number, how.stride)


def _inside(x: jax.Array) -> jax.Array:
    """True at every position of x, to be padded as x is: a zero there times what is infinite is
    nan.
    """
    return jnp.ones((1, *x.shape[1:-1], 1), bool)


def _padded(x: jax.Array, how: Convolution) -> jax.Array:
    axes = zip(how.padding, how.spread, strict=True)
    spatial = [(low, high, spread - 1) for (low, high), spread in axes]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *spatial, (0, 0, 0)])
