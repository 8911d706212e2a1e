"""Rotary position embedding: pairs of features turned by an angle that grows with position."""

from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprop.precision import at_least_float32, floating, up
from jaxprop.rule import Case, Rule
from jaxprop.rules.rotary_scaling import (
    LinearScaling,
    Llama3Scaling,
    NtkScaling,
    Scaling,
    Unscaled,
    YarnScaling,
)
from jaxprop.samples import normal


def rotary_reference(
    x: jax.Array,
    positions: jax.Array,
    *,
    base: float,
    interleaved: bool = False,
    part: int | None = None,
    scaling: Scaling | None = None,
) -> jax.Array:
    """Turn each pair of features by position * frequency, so that q . k depends on distance alone.

    Use it on queries and keys before attention, in place of added position embeddings.

    Scope      one head of one example: x (T, D); cos and sin (T, D), of the angle of each
               feature's pair, times the gain; partner (D,), the index of the other feature of
               the pair; first (D,), whether a feature is the first of its pair
    Forward    turn = where(first, -1, 1) * one_hot(partner, x)        (F1)
               across = x @ turn                                       (F2)
               y = cos * x + sin * across                              (F3)
    Backward   dacross = sin * g                                       (B1) from F3
               dx = cos * g + dacross @ turn.T                         (B2) from F2, F3
               dcos = x * g                                            (B3) from F3
               dsin = across * g                                       (B4) from F3

    Args:
        x: (B, T, H, D), floating; or (T, H, D), or (T, D) for one head of one example.
        positions: (T,) or (B, T), integers. No cotangent.
        base: the slowest pair turns by about 1 / base radians per position; 10000 is usual.
        interleaved: whether a pair is features 2 * i and 2 * i + 1; else i and i + part / 2.
        part: how many features are turned, from the first on; even, None for all of them.
        scaling: how frequencies are stretched beyond the length trained on: LinearScaling,
            NtkScaling, Llama3Scaling or YarnScaling of `jaxprop.rules.rotary_scaling`.

    Returns:
        y: x's shape and dtype.

    Residuals: positions (an argument). turn.T is -turn, so B2 is F2 and F3 with -sin: the
        rotation back. B3 and B4 stop there: positions are integers.

    Numerics: angles, sines and products in float32 at least, rounded once. A float32 angle is off
        by position * 6e-8 radians. Without a gain the norm of every pair is kept; YarnScaling
        multiplies value and gradient by its gain.

    Raises:
        TypeError: where x is not floating or positions are not integers.
        ValueError: where shapes or options do not fit.

    Source: Su et al. (2021), RoFormer, equation 34.
    """
    _check(x, positions, base, part)
    return _turned(x, positions, 1, Turn(base, interleaved, part, scaling)).astype(x.dtype)


@dataclass(frozen=True)
class Turn:
    """The options of rotary."""

    base: float
    interleaved: bool
    part: int | None
    scaling: Scaling | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RotaryResiduals:
    positions: jax.Array
    turn: Turn = field(metadata={"static": True})


def rotary_forward(
    x: jax.Array,
    positions: jax.Array,
    *,
    base: float,
    interleaved: bool,
    part: int | None,
    scaling: Scaling | None,
) -> tuple[jax.Array, RotaryResiduals]:
    options: dict[str, Any] = {
        "base": base,
        "interleaved": interleaved,
        "part": part,
        "scaling": scaling,
    }
    y = rotary_reference(x, positions, **options)  # F1 to F3
    return y, RotaryResiduals(positions, Turn(**options))


def rotary_backward(res: RotaryResiduals, g: jax.Array) -> tuple[jax.Array, None]:
    return _turned(g, res.positions, -1, res.turn), None  # B1, B2


def _turned(x: jax.Array, positions: jax.Array, sign: int, turn: Turn) -> jax.Array:
    """x turned by sign * angle, in the dtype to compute in: F1 to F3, or B1 and B2."""
    width = x.shape[-1] if turn.part is None else turn.part
    scaling = turn.scaling or Unscaled()
    frequencies = scaling.frequencies(turn.base, width)
    angle = _angles(x, positions, sign * frequencies)
    cos, sin = scaling.gain * jnp.cos(angle), scaling.gain * jnp.sin(angle)
    left, right = _split(up(x), width, turn.interleaved)
    pairs = (cos * left - sin * right, cos * right + sin * left)
    rest = () if width == x.shape[-1] else (up(x)[..., width:],)
    return _joined(pairs, rest, turn.interleaved)


def _angles(x: jax.Array, positions: jax.Array, frequencies: np.ndarray) -> jax.Array:
    """(..., T, 1, pairs) where x has heads, (T, pairs) where it has none."""
    dtype = at_least_float32(x.dtype)
    angle = positions.astype(dtype)[..., None] * jnp.asarray(frequencies, dtype)
    return angle if x.ndim == 2 else angle[..., None, :]


def _split(x: jax.Array, width: int, interleaved: bool) -> tuple[jax.Array, jax.Array]:
    """The first and the second features of all pairs."""
    if interleaved:
        return x[..., 0:width:2], x[..., 1:width:2]
    return x[..., : width // 2], x[..., width // 2 : width]


def _joined(
    pairs: tuple[jax.Array, jax.Array], rest: tuple[jax.Array, ...], interleaved: bool
) -> jax.Array:
    if interleaved:
        left, _ = pairs
        woven = jnp.stack(pairs, axis=-1).reshape(*left.shape[:-1], 2 * left.shape[-1])
        return jnp.concatenate([woven, *rest], axis=-1)
    parts = (*pairs, *rest)
    ends = np.cumsum([part.shape[-1] for part in parts])
    placed = [_placed(part, int(end), int(ends[-1])) for part, end in zip(parts, ends, strict=True)]
    return sum(placed[1:], start=placed[0])


def _placed(part: jax.Array, end: int, width: int) -> jax.Array:
    """Zeros but for the features up to `end`; added up, which XLA fuses."""
    margins = (end - part.shape[-1], width - end, 0)
    return lax.pad(part, jnp.zeros((), part.dtype), [(0, 0, 0)] * (part.ndim - 1) + [margins])


def _check(x: jax.Array, positions: jax.Array, base: float, part: int | None) -> None:
    floating("rotary", "x", x)
    if not jnp.issubdtype(positions.dtype, jnp.integer):
        raise TypeError(
            f"rotary: positions must be integers, got {positions.dtype}. Scale them by the option "
            "scaling."
        )
    if not 2 <= x.ndim <= 4:
        raise ValueError(
            f"rotary: x must be (B, T, H, D), (T, H, D) or (T, D), got {x.shape}. Heads come after "
            "time: swap those axes where heads come first."
        )
    time = x.shape[-3] if x.ndim > 2 else x.shape[0]
    if positions.shape != (time,) and (x.ndim < 4 or positions.shape != x.shape[:2]):
        raise ValueError(
            f"rotary: positions must be (T,) or (B, T), with T = {time} for x {x.shape}, got "
            f"{positions.shape}. Give jnp.arange(T), or each example its own."
        )
    width = x.shape[-1] if part is None else part
    if not 0 < width <= x.shape[-1] or width % 2:
        raise ValueError(
            f"rotary: part must be even and from 2 to D = {x.shape[-1]}, got {width}. Features "
            "are turned in pairs."
        )
    if not (base > 0 and isfinite(base)):
        raise ValueError(f"rotary: base must be positive and finite, got {base}. 10000 is usual.")


def rotary_cases() -> list[Case]:
    x, positions = normal(0, 2, 5, 3, 8), jnp.arange(5, dtype=jnp.int32)
    own = jnp.array([[0, 1, 2, 0, 1], [7, 8, 9, 10, 11]], jnp.int32)
    base = {"base": 100.0}
    llama = Llama3Scaling(factor=4.0, low=1.0, high=4.0, trained_length=64)
    yarn = YarnScaling(factor=4.0, trained_length=64, fast=8.0)
    return [
        _at_scope("halves", x, positions, base),
        _at_scope("positions of each example", x, own, base),
        _at_scope("one head of one example", x[0, :, 0], positions, base),
        _at_scope("square", x[0, :4, 0, :4], positions[:4], base),
        _at_scope("no batch", x[0], positions, base),
        _at_scope("one pair", x[..., :2], positions, base),
        _at_scope("bfloat16", x.astype(jnp.bfloat16), positions, base),
        _at_scope("interleaved part", x, own, base | {"interleaved": True, "part": 4}),
        _at_scope("interpolated part", x, own, base | {"part": 6, "scaling": LinearScaling(2.0)}),
        _at_scope("NTK", x, positions, base | {"scaling": NtkScaling(2.0)}),
        _at_scope("llama 3", x, positions, base | {"scaling": llama}),
        _at_scope("YaRN", x, positions, base | {"interleaved": True, "scaling": yarn}),
        Case("zeros", (0 * x, positions), base, edge=True),
        Case("negative positions", (x, -positions), base, edge=True),
        Case("no examples", (x[:0], positions), base, edge=True),
    ]


def _at_scope(name: str, x: np.ndarray, positions: jax.Array, options: dict[str, Any]) -> Case:
    """A case whose `given` are its first example and head, and what the derivation names there."""
    head = x if x.ndim == 2 else x[..., 0, :]
    head = head if head.ndim == 2 else head[0]
    at = positions if positions.ndim == 1 else positions[0]
    width = options.get("part") or head.shape[-1]
    feature = np.arange(head.shape[-1])
    if options.get("interleaved"):
        pair, first = feature // 2, feature % 2 == 0
        partner = feature + np.where(first, 1, -1)
    else:
        pair, first = feature % (width // 2), feature < width // 2
        partner = feature + np.where(first, width // 2, -(width // 2))
    turned = feature < width
    scaling = options.get("scaling") or Unscaled()
    frequency = scaling.frequencies(options["base"], width)[np.where(turned, pair, 0)]
    angle = np.asarray(at)[:, None] * frequency
    given = {
        "x": head,
        "positions": at,
        "cos": np.where(turned, scaling.gain * np.cos(angle), 1.0),
        "sin": np.where(turned, scaling.gain * np.sin(angle), 0.0),
        "partner": np.where(turned, partner, feature),
        "first": first,
    }
    return Case(name, (x, positions), options, given)


rotary = Rule(rotary_reference, rotary_forward, rotary_backward, rotary_cases, budget=0)
