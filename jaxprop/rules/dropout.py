"""Noise in training: dropout, drop_path, gaussian_noise; backward draws it again from the key."""

from math import sqrt
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprop.precision import floating, up
from jaxprop.rule import Case, Rule
from jaxprop.samples import normal


def dropout_reference(x: jax.Array, rate: jax.Array, key: jax.Array | None) -> jax.Array:
    """Set each element to zero with probability rate, and divide the others by 1 - rate.

    Use it in training, against overfitting; with key=None, for evaluation, it is the identity.
    The mean of y over the keys is x.

    Scope      elementwise: any shape; kept, the mask that the key gives
    Forward    y = where(kept, x / (1 - rate), 0)                      (F1)
    Backward   dx = where(kept, g / (1 - rate), 0)                     (B1) from F1

    Args:
        x: any shape, floating.
        rate: a probability, a scalar; no cotangent: the mask hides what it does to the mean.
        key: a key of jax.random, or None to drop nothing; no cotangent.

    Returns:
        y: x's shape and dtype.

    Residuals: rate and key (arguments). The mask is rebuilt from the key, never stored; where
        both passes are one compiled program, XLA may see that they draw the same and draw once.

    Numerics: scaled in float32 at least, rounded once. The mask is drawn in float32 in every
        precision, as Flax and Equinox draw it there: the same key gives the same mask. A rate of 1
        gives zeros, value and gradient; one that is no probability gives nan. What is dropped is 0
        even where x is infinite or nan. Inside shard_map fold the device's index into the key.

    Raises:
        TypeError: where x is not floating, or key is not a key.
        ValueError: where rate is not a scalar, or there are several keys.

    Source: Srivastava et al. (2014), Dropout, section 10, in its inverted form.
    """
    x = _checked("dropout", x, "rate", rate, key)
    return x if key is None else _thinned(x, rate, key, x.shape).astype(x.dtype)  # F1


class DropoutResiduals(NamedTuple):
    rate: jax.Array
    key: jax.Array | None


def dropout_forward(
    x: jax.Array, rate: jax.Array, key: jax.Array | None
) -> tuple[jax.Array, DropoutResiduals]:
    return dropout_reference(x, rate, key), DropoutResiduals(rate, key)  # F1


def dropout_backward(res: DropoutResiduals, g: jax.Array) -> tuple[jax.Array, None, None]:
    rate, key = res
    dx = g if key is None else _thinned(g, rate, key, g.shape)  # B1
    return dx, None, None


def drop_path_reference(x: jax.Array, rate: jax.Array, key: jax.Array | None) -> jax.Array:
    """Set whole examples to zero with probability rate, and divide the others by 1 - rate.

    Use it on the branch of a residual block in training, so that blocks are skipped at random;
    with key=None, for evaluation, it is the identity.

    Scope      rows: x (B, C); kept (B, 1), the mask that the key gives
    Forward    y = where(kept, x / (1 - rate), 0)                      (F1)
    Backward   dx = where(kept, g / (1 - rate), 0)                     (B1) from F1

    Args:
        x: (B, ...), floating.
        rate: a probability, a scalar; no cotangent.
        key: a key of jax.random, or None to drop nothing; no cotangent.

    Returns:
        y: x's shape and dtype.

    Residuals: rate and key (arguments); the mask is rebuilt.

    Numerics: those of dropout.

    Raises:
        TypeError: where x is not floating, or key is not a key.
        ValueError: where x is a scalar, rate is not, or there are several keys.

    Source: Huang et al. (2016), Deep networks with stochastic depth, per example as in Larsson
        et al. (2017), FractalNet.
    """
    x = _checked("drop_path", x, "rate", rate, key)
    if x.ndim < 1:
        raise ValueError(
            "drop_path: x must be (B, ...), got a scalar. Give x its batch axis, or use dropout."
        )
    return x if key is None else _thinned(x, rate, key, _examples(x)).astype(x.dtype)  # F1


def drop_path_forward(
    x: jax.Array, rate: jax.Array, key: jax.Array | None
) -> tuple[jax.Array, DropoutResiduals]:
    return drop_path_reference(x, rate, key), DropoutResiduals(rate, key)  # F1


def drop_path_backward(res: DropoutResiduals, g: jax.Array) -> tuple[jax.Array, None, None]:
    rate, key = res
    dx = g if key is None else _thinned(g, rate, key, _examples(g))  # B1
    return dx, None, None


def gaussian_noise_reference(x: jax.Array, scale: jax.Array, key: jax.Array | None) -> jax.Array:
    """Add normal noise of a standard deviation: y = x + scale * noise.

    Use it in training, on inputs or activations; with key=None, for evaluation, it is the
    identity. The scale may be learned: its gradient is that of the one draw.

    Scope      elementwise: any shape; noise, which the key gives
    Forward    y = x + scale * noise                                   (F1)
    Backward   dx = g                                                  (B1) from F1
               dscale = sum_all(g * noise)                             (B2) from F1
               dnoise = scale * g                                      (B3) from F1

    Args:
        x: any shape, floating.
        scale: the standard deviation, a floating scalar, in the units of x.
        key: a key of jax.random, or None to add nothing; no cotangent, so B3 is not computed.

    Returns:
        y: x's shape and dtype.

    Residuals: scale and key (arguments); the noise is drawn again, for dscale alone.

    Numerics: added in float32 at least, rounded once. The noise is what jax.random.normal draws in
        float32, in every precision: the same key gives the same noise.

    Raises:
        TypeError: where x or scale is not floating, or key is not a key.
        ValueError: where scale is not a scalar, or there are several keys.

    Source: Bishop (1995), Training with noise is equivalent to Tikhonov regularization; for
        dscale, Kingma and Welling (2014), Auto-encoding variational Bayes, section 2.4.
    """
    x = _checked("gaussian_noise", x, "scale", floating("gaussian_noise", "scale", scale), key)
    if key is None:
        return x
    return (up(x) + jnp.asarray(scale, up(x).dtype) * _normal(key, up(x))).astype(x.dtype)  # F1


class NoiseResiduals(NamedTuple):
    scale: jax.Array
    key: jax.Array | None


def gaussian_noise_forward(
    x: jax.Array, scale: jax.Array, key: jax.Array | None
) -> tuple[jax.Array, NoiseResiduals]:
    return gaussian_noise_reference(x, scale, key), NoiseResiduals(scale, key)  # F1


def gaussian_noise_backward(
    res: NoiseResiduals, g: jax.Array
) -> tuple[jax.Array, jax.Array | None, None]:
    if res.key is None:
        return g, None, None
    return g, jnp.sum(up(g) * _normal(res.key, up(g))), None  # B1, B2


def _thinned(
    x: jax.Array, rate: jax.Array, key: jax.Array, mask_shape: tuple[int, ...]
) -> jax.Array:
    """x / (1 - rate) where the key keeps it, zeros elsewhere."""
    kept, x = _mask(rate, key, mask_shape), up(x)
    rate = lax.stop_gradient(jnp.asarray(rate, x.dtype))
    within = jnp.where((rate >= 0) & (rate <= 1), rate, jnp.nan)
    factor = jnp.where(rate == 1, 0, 1 / (1 - within))
    return jnp.where(kept, factor * x, 0 * factor)  # F1, B1


def _mask(rate: jax.Array, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, shape, jnp.float32) < 1 - jnp.asarray(rate, jnp.float32)


def _examples(x: jax.Array) -> tuple[int, ...]:
    """The shape of one number per example, that goes with x."""
    return (x.shape[0], *(1 for _ in x.shape[1:]))


def _normal(key: jax.Array, like: jax.Array) -> jax.Array:
    """What jax.random.normal draws in float32, the draw carried to the normal in like's dtype."""
    lowest = float(np.nextafter(np.float32(-1), np.float32(0)))
    u = jax.random.uniform(key, like.shape, jnp.float32, lowest, 1.0)
    return sqrt(2) * lax.erf_inv(u.astype(like.dtype))


def _checked(
    owner: str, x: jax.Array, name: str, strength: jax.Array, key: jax.Array | None
) -> jax.Array:
    """x, after what is wrong with the arguments has been said."""
    x = floating(owner, "x", x)
    if shape := jnp.shape(strength):
        raise ValueError(
            f"{owner}: {name} must be a scalar, got {shape}. Call it once for each, or "
            "under jax.vmap."
        )
    if key is None:
        return x
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not (typed or (key.dtype == jnp.uint32 and key.ndim)):
        raise TypeError(
            f"{owner}: key must be a key of jax.random or None, got {jax.typeof(key)}. Make one "
            "with jax.random.key(seed)."
        )
    if key.ndim > (0 if typed else 1):
        raise ValueError(
            f"{owner}: key must be one key, got {jax.typeof(key)}. Give one of them, or map over "
            "them with jax.vmap."
        )
    return x


def dropout_cases() -> list[Case]:
    x, rate, key = _arguments()
    kept = {"kept": _mask(rate, key, x.shape)}
    return [
        Case("matrix", (x, rate, key), given=kept),
        Case("evaluation", (x, rate, None), given={"kept": True, "rate": 0.0}),
        Case("bfloat16", (x.astype(jnp.bfloat16), rate, key), given=kept),
        Case("scalar", (x[0, 0], rate, key), given={"kept": _mask(rate, key, ())}),
        *_edges(x, key),
    ]


def drop_path_cases() -> list[Case]:
    x, rate, key = _arguments()
    images = normal(2, 8, 2, 1, 3)
    kept = {"kept": _mask(rate, key, (4, 1))}
    return [
        Case("rows", (x, rate, key), given=kept),
        Case("evaluation", (x, rate, None), given={"kept": True, "rate": 0.0}),
        Case("bfloat16", (x.astype(jnp.bfloat16), rate, key), given=kept),
        Case("images", (images, rate, key), given={"kept": _mask(rate, key, (8, 1, 1, 1))}),
        *_edges(x, key),
    ]


def _edges(x: np.ndarray, key: jax.Array) -> list[Case]:
    rates = {"nothing dropped": 0.0, "all dropped": 1.0}
    ends = [Case(name, (x, jnp.float32(r), key), edge=True) for name, r in rates.items()]
    return [*ends, Case("empty", (x[:0], jnp.float32(0.5), key), edge=True)]


def gaussian_noise_cases() -> list[Case]:
    x, scale, key = _arguments()
    given = {"noise": _noise(key, x)}
    return [
        Case("matrix", (x, scale, key), given=given),
        Case("evaluation", (x, scale, None), given={"noise": jnp.zeros_like(x)}),
        Case("bfloat16", (x.astype(jnp.bfloat16), scale, key), given=given),
        Case("scalar", (x[0, 0], scale, key), given={"noise": _noise(key, x[0, 0])}),
        Case("no noise", (x, jnp.float32(0.0), key), edge=True),
        Case("empty", (x[:0], scale, key), edge=True),
    ]


def _noise(key: jax.Array, x: np.ndarray) -> jax.Array:
    """The noise in float64, as the derivation is evaluated."""
    with jax.enable_x64(True):
        return _normal(key, jnp.asarray(x, jnp.float64))


def _arguments() -> tuple[np.ndarray, jax.Array, jax.Array]:
    return normal(0, 4, 3), jnp.float32(0.25), jax.random.key(3)


dropout = Rule(dropout_reference, dropout_forward, dropout_backward, dropout_cases, budget=0)
drop_path = Rule(
    drop_path_reference, drop_path_forward, drop_path_backward, drop_path_cases, budget=0
)
gaussian_noise = Rule(
    gaussian_noise_reference,
    gaussian_noise_forward,
    gaussian_noise_backward,
    gaussian_noise_cases,
    budget=0,
)
