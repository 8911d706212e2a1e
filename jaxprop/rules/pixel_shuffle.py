"""Pixel shuffle: channels to resolution, and back. Numbers change places and nothing else."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.precision import floating
from jaxprop.rule import Case, Rule
from jaxprop.samples import normal


def pixel_shuffle_reference(x: jax.Array, *, factor: int) -> jax.Array:
    """Turn channels into resolution: y[h * r + i, w * r + j, c] = x[h, w, c * r * r + i * r + j].

    Use it after a convolution to raise the resolution by r = factor.

    Scope      any shape: x as below; source, of y's shape, the numbers of x's entries, counted in
               row-major order, and target, of x's shape, those of y's
    Forward    y = take(x, source)                                     (F1)
    Backward   dx = take(g, target)                                    (B1) from F1

    Args:
        x: (B, H, W, C * factor * factor), floating.
        factor: how many pixels one pixel becomes, along each of the two axes.

    Returns:
        y: (B, H * factor, W * factor, C), x's dtype.

    Residuals: none. The order is turned back, so backward is pixel_unshuffle.

    Numerics: exact. Channels are in PyTorch's order, c first; TensorFlow's depth_to_space has c
        last.

    Raises:
        TypeError: where x is not floating.
        ValueError: where x is not (B, H, W, C), or the factor does not fit.

    Source: Shi et al. (2016), Real-time single image and video super-resolution using an efficient
        sub-pixel convolutional neural network, equation 4.
    """
    _check("pixel_shuffle", x, factor)
    if x.shape[-1] % (factor * factor):
        raise ValueError(
            f"pixel_shuffle: the channels of x must be a multiple of factor * factor = "
            f"{factor * factor}, got {x.shape}. Channels are the last axis."
        )
    return _shuffled(x, factor)  # F1


def _shuffled(x: jax.Array, factor: int) -> jax.Array:
    batch, height, width, channels = x.shape
    width_out, channels_out = width * factor, channels // (factor * factor)
    split = x.reshape(batch, height, width, channels_out, factor, factor)
    pixels = jnp.transpose(split, (0, 1, 4, 2, 5, 3))
    # One axis at a time: that is what JAX allows on Explicit meshes.
    rows = pixels.reshape(batch, height, factor, width_out, channels_out)
    return rows.reshape(batch, height * factor, width_out, channels_out)


def pixel_unshuffle_reference(x: jax.Array, *, factor: int) -> jax.Array:
    """Turn resolution into channels: the inverse of pixel_shuffle.

    Use it in place of a stride, to lower the resolution by r = factor and lose nothing.

    Scope      any shape: x as below; source, of y's shape, the numbers of x's entries, counted in
               row-major order, and target, of x's shape, those of y's
    Forward    y = take(x, source)                                     (F1)
    Backward   dx = take(g, target)                                    (B1) from F1

    Args:
        x: (B, H * factor, W * factor, C), floating.
        factor: how many pixels become one, along each of the two axes.

    Returns:
        y: (B, H, W, C * factor * factor), x's dtype.

    Residuals: none. Backward is pixel_shuffle.

    Numerics: exact; channels in the order of pixel_shuffle.

    Raises:
        TypeError: where x is not floating.
        ValueError: where x is not (B, H, W, C), or the factor does not fit.

    Source: the inverse of Shi et al. (2016), equation 4.
    """
    _check("pixel_unshuffle", x, factor)
    if x.shape[1] % factor or x.shape[2] % factor:
        raise ValueError(
            f"pixel_unshuffle: the height and width of x must be multiples of factor = {factor}, "
            f"got {x.shape}. Pad or crop it first."
        )
    return _unshuffled(x, factor)  # F1


def _unshuffled(x: jax.Array, factor: int) -> jax.Array:
    batch, height, width, channels = x.shape
    rows = x.reshape(batch, height // factor, factor, width, channels)
    split = rows.reshape(*rows.shape[:3], width // factor, factor, channels)
    pixels = jnp.transpose(split, (0, 1, 3, 5, 2, 4))
    return pixels.reshape(*pixels.shape[:3], channels * factor * factor)


def _check(owner: str, x: jax.Array, factor: int) -> None:
    if floating(owner, "x", x).ndim != 4:
        raise ValueError(
            f"{owner}: x must be (B, H, W, C), got {x.shape}. Give one image a batch axis of 1."
        )
    if not isinstance(factor, int) or factor < 1:
        raise ValueError(
            f"{owner}: factor must be a positive integer, got {factor!r}. It is the same along "
            "both axes."
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ShuffleResiduals:
    factor: int = field(metadata={"static": True})


def pixel_shuffle_forward(x: jax.Array, *, factor: int) -> tuple[jax.Array, ShuffleResiduals]:
    return pixel_shuffle_reference(x, factor=factor), ShuffleResiduals(factor)  # F1


def pixel_shuffle_backward(res: ShuffleResiduals, g: jax.Array) -> tuple[jax.Array]:
    return (_unshuffled(g, res.factor),)  # B1


def pixel_unshuffle_forward(x: jax.Array, *, factor: int) -> tuple[jax.Array, ShuffleResiduals]:
    return pixel_unshuffle_reference(x, factor=factor), ShuffleResiduals(factor)  # F1


def pixel_unshuffle_backward(res: ShuffleResiduals, g: jax.Array) -> tuple[jax.Array]:
    return (_shuffled(g, res.factor),)  # B1


def pixel_shuffle_cases() -> list[Case]:
    def case(name: str, x: np.ndarray, factor: int, edge: bool = False) -> Case:
        batch, height, width, channels = x.shape
        shape = (batch, height * factor, width * factor, channels // factor**2)
        _, h, w, c = np.indices(shape)
        channel = c * factor**2 + h % factor * factor + w % factor
        pixel = np.indices(shape)[0], h // factor, w // factor, channel
        source = np.ravel_multi_index(pixel, x.shape) if x.size else np.zeros(shape, int)
        target = np.argsort(source.ravel()).reshape(x.shape)
        return Case(name, (x,), {"factor": factor}, {"source": source, "target": target}, edge)

    x = normal(0, 2, 3, 2, 12)
    return [
        case("twice the resolution", x, 2),
        case("three times", normal(1, 1, 2, 1, 9), 3),
        case("bfloat16", x.astype(jnp.bfloat16), 2),
        case("once", x, 1),
        case("no examples", x[:0], 2, edge=True),
    ]


def pixel_unshuffle_cases() -> list[Case]:
    def turned(case: Case) -> Case:
        given = case.given or {}
        return case._replace(
            args=(case.args[0].ravel()[given["source"]],),
            given={"source": given["target"], "target": given["source"]},
        )

    return [turned(case) for case in pixel_shuffle_cases()]


pixel_shuffle = Rule(
    pixel_shuffle_reference,
    pixel_shuffle_forward,
    pixel_shuffle_backward,
    pixel_shuffle_cases,
    budget=0,
)
pixel_unshuffle = Rule(
    pixel_unshuffle_reference,
    pixel_unshuffle_forward,
    pixel_unshuffle_backward,
    pixel_unshuffle_cases,
    budget=0,
)
