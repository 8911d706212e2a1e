"""The linear maps and the deep stacks, forward and backward, against automatic differentiation."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

import jaxprop
from jaxprop.benchmarking.gradients import Way, gradient_entry
from jaxprop.benchmarking.timing import Entry
from jaxprop.installing import PyTree
from jaxprop.layers import Layer
from jaxprop.samples import normal


def linear_entries(quick: bool) -> Iterator[tuple[str, Callable[[], Entry]]]:
    """Names, and what makes each entry when its turn has come."""
    rows, width = (64, 32) if quick else (2048, 512)
    for make in (linear, projection, lora_linear, bilinear, tied_unembedding):
        for dtype in ("float32", "bfloat16"):
            name = f"rule-{make.__name__}-{dtype}-{rows}x{width}"
            yield name, partial(make, name, dtype, rows, width)
    depth, rows, width = (4, 64, 32) if quick else (32, 2048, 128)
    for stack in (repeat, reversible):
        name = f"layer-{stack.__name__}-float32-{depth}x{rows}x{width}"
        yield name, partial(stack, name, depth, rows, width)


def linear(name: str, dtype: str, rows: int, width: int) -> Entry:
    def plain(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
        return x @ w.astype(x.dtype) + b.astype(x.dtype)

    args = _x(dtype, rows, width), _w(1, width, width), normal(2, width)
    return gradient_entry(name, {"automatic": plain, "by hand": jaxprop.linear}, args)


def projection(name: str, dtype: str, rows: int, width: int) -> Entry:
    """Heads from features, as attention makes its queries."""
    heads, equation = 8, "btc,chd->bthd"

    def plain(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.einsum(equation, x, w.astype(x.dtype))

    x = _x(dtype, rows, width).reshape(8, rows // 8, width)
    args = x, _w(1, width, width).reshape(width, heads, width // heads)
    ways: dict[str, Way] = {
        "automatic": plain,
        "by hand": jaxprop.projection.bind(equation=equation),
    }
    return gradient_entry(name, ways, args)


def lora_linear(name: str, dtype: str, rows: int, width: int) -> Entry:
    """Rank 8 beside a frozen matrix, closed over so that plain code leaves it alone too."""
    w, scale = _w(1, width, width), jnp.float32(2.0)

    def plain(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        frozen, a, b = (matrix.astype(x.dtype) for matrix in (w, a, b))
        return x @ frozen + scale.astype(x.dtype) * ((x @ a) @ b)

    def by_hand(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        return jaxprop.lora_linear(x, w, a, b, scale)

    args = _x(dtype, rows, width), _w(2, width, 8), _w(3, 8, width)
    return gradient_entry(name, {"automatic": plain, "by hand": by_hand}, args)


def bilinear(name: str, dtype: str, rows: int, width: int) -> Entry:
    inner = width // 8

    def plain(x1: jax.Array, x2: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.einsum("ni,oij,nj->no", x1, w.astype(x1.dtype), x2)

    x1, x2 = _x(dtype, rows, inner), normal(4, rows, inner).astype(dtype)
    args = x1, x2, normal(1, inner, inner, inner) / inner
    return gradient_entry(name, {"automatic": plain, "by hand": jaxprop.bilinear}, args)


def tied_unembedding(name: str, dtype: str, rows: int, width: int) -> Entry:
    def plain(h: jax.Array, table: jax.Array) -> jax.Array:
        return h @ table.astype(h.dtype).T

    args = _x(dtype, rows, width), _w(1, 4 * width, width)
    return gradient_entry(name, {"automatic": plain, "by hand": jaxprop.tied_unembedding}, args)


def repeat(name: str, depth: int, rows: int, width: int) -> Entry:
    """Residual blocks: all residuals saved, the blocks' inputs, every fourth block's."""
    block = jaxprop.residual(_branch(width))
    params = jaxprop.repeat(block, depth).init(jax.random.key(0), (rows, width))
    ways = _automatic(_plain_block)
    for words, save in {"": None, ", inputs": 1, ", every 4th": 4}.items():
        ways[f"by hand{words}"] = _called(jaxprop.repeat(block, depth, save=save))
    return gradient_entry(name, ways, (params, normal(1, rows, width)))


def reversible(name: str, depth: int, rows: int, width: int) -> Entry:
    """Blocks whose inputs are rebuilt from their outputs."""
    half = _branch(width // 2)
    layer = jaxprop.reversible(half, half, depth)
    params = layer.init(jax.random.key(0), (rows, width))
    # Branches as small as deep networks begin with: others amplify the errors of what is rebuilt.
    params = jax.tree.map(lambda leaf: leaf / 8, params)

    def plain_block(x: jax.Array, p: PyTree) -> jax.Array:
        x1, x2 = jnp.split(x, 2, axis=-1)
        x1 = x1 + _plain_branch(p["f"], x2)
        return jnp.concatenate([x1, x2 + _plain_branch(p["g"], x1)], axis=-1)

    ways = _automatic(plain_block) | {"by hand": _called(layer)}
    return gradient_entry(name, ways, (params, normal(1, rows, width)))


def _branch(width: int) -> Layer:
    bend = jaxprop.gelu.bind(approximate=True)
    return jaxprop.chain(inner=jaxprop.dense(2 * width, bend), out=jaxprop.dense(width))


def _plain_block(x: jax.Array, p: PyTree) -> jax.Array:
    return x + _plain_branch(p, x)


def _plain_branch(p: PyTree, x: jax.Array) -> jax.Array:
    h = jax.nn.gelu(x @ p["inner"]["w"] + p["inner"]["b"])
    return h @ p["out"]["w"] + p["out"]["b"]


def _automatic(block: Callable[[jax.Array, PyTree], jax.Array]) -> dict[str, Way]:
    """The stack in plain JAX: a scan, and one that keeps the blocks' inputs alone."""

    def scan(block: Callable, params: PyTree, x: jax.Array) -> jax.Array:
        return lax.scan(lambda h, p: (block(h, p), None), x, params)[0]

    return {"scan": partial(scan, block), "scan, remat": partial(scan, jax.checkpoint(block))}


def _called(layer: Layer) -> Way:
    return lambda params, x: layer(params, x)


def _x(dtype: str, rows: int, width: int) -> jax.Array:
    return jnp.asarray(normal(0, rows, width), dtype)


def _w(seed: int, *shape: int) -> jax.Array:
    """float32, whatever the data, and of a size that keeps that of x."""
    return jnp.asarray(normal(seed, *shape) * shape[0] ** -0.5)
