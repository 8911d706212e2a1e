"""Gated units: a value times an activation of its gate.

The value comes first and the gate second, as in the halves of jax.nn.glu and PyTorch's: glu takes
both in one array, swiglu, geglu and reglu each in its own, so that no projection has to be cut.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.precision import at_least_float32, floating, up
from jaxprop.rule import Case, Rule
from jaxprop.rules.activations import relu
from jaxprop.rules.self_gated import gelu, silu
from jaxprop.samples import normal


def glu_reference(x: jax.Array, *, axis: int = -1) -> jax.Array:
    """Gate the first half of an axis by the sigmoid of the second.

    Use it after one projection that makes value and gate together.

    Scope      rows: x (B, 2 C), axis=-1
    Forward    value = part(x, 0, 2)                                   (F1)
               p = 1 / (1 + exp(-part(x, 1, 2)))                       (F2)
               y = value * p                                           (F3)
    Backward   dvalue = p * g                                          (B1) from F3
               dp = value * g                                          (B2) from F3
               dx = beside(dvalue, p * (1 - p) * dp)                   (B3) from F1, F2

    Args:
        x: any shape, floating; an even number along the axis.
        axis: the axis that is halved.

    Returns:
        y: x's shape with half of that axis, and its dtype.

    Residuals: x (the argument); p is recomputed.

    Numerics: computed in float32 at least, rounded once. Where the gate is -inf and the value
        infinite y is nan (inf * 0), elsewhere the gradient of a gate at -inf and inf is 0.

    Raises:
        TypeError: where x is not floating.
        ValueError: where x has no such axis, or its length is odd.

    Source: Dauphin et al. (2017), Language modeling with gated convolutional networks, equation 1.
    """
    x = floating("glu", "x", x)
    if not -x.ndim <= axis < x.ndim or x.shape[axis] % 2:
        raise ValueError(
            f"glu: axis must be one of x's {x.ndim} axes, of even length, got axis {axis} for x "
            f"{x.shape}. Its first half is the value, its second the gate."
        )
    value, gate = jnp.split(up(x), 2, axis)
    return (value * jax.nn.sigmoid(gate)).astype(x.dtype)  # F1 to F3


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GluResiduals:
    x: jax.Array
    axis: int = field(metadata={"static": True})


def glu_forward(x: jax.Array, *, axis: int) -> tuple[jax.Array, GluResiduals]:
    return glu_reference(x, axis=axis), GluResiduals(x, axis)  # F1 to F3


def glu_backward(res: GluResiduals, g: jax.Array) -> tuple[jax.Array]:
    value, gate = jnp.split(up(res.x), 2, res.axis)  # F1
    p, g = jax.nn.sigmoid(gate), up(g)  # F2, recomputed
    dvalue, dp = p * g, value * g  # B1, B2
    return (jnp.concatenate([dvalue, p * (1 - p) * dp], res.axis),)  # B3


def swiglu_reference(value: jax.Array, gate: jax.Array) -> jax.Array:
    """Gate a value by the silu of another array: y = value * silu(gate).

    Use it in the feed-forward block of a transformer, value and gate two projections of its input.

    Scope      elementwise: any shape
    Forward    p = 1 / (1 + exp(-gate))                                (F1)
               h = gate * p                                            (F2)
               y = value * h                                           (F3)
    Backward   dvalue = h * g                                          (B1) from F3
               dh = value * g                                          (B2) from F3
               dp = gate * dh                                          (B3) from F2
               dgate = p * dh + p * (1 - p) * dp                       (B4) from F1, F2

    Args:
        value: any shape, floating.
        gate: value's shape, floating.

    Returns:
        y: value's shape and dtype.

    Residuals: value and gate (arguments); p and h are recomputed.

    Numerics: computed in float32 at least, rounded once; the gate's limits at -inf and inf are
        those of silu.

    Raises:
        TypeError: where value or gate is not floating.
        ValueError: where their shapes differ.

    Source: Shazeer (2020), GLU variants improve transformer, equation 6.
    """
    return _gated("swiglu", value, gate, silu.reference)  # F1 to F3


class GatedResiduals(NamedTuple):
    value: jax.Array
    gate: jax.Array


def swiglu_forward(value: jax.Array, gate: jax.Array) -> tuple[jax.Array, GatedResiduals]:
    return swiglu_reference(value, gate), GatedResiduals(value, gate)  # F1 to F3


def swiglu_backward(res: GatedResiduals, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    value, gate, g = _wide(res.value, _again(res.gate), g)
    h, saved = silu.forward(gate)  # F1, F2, recomputed
    return h * g, silu.backward(saved, value * g)[0]  # B1, B2 to B4


def geglu_reference(value: jax.Array, gate: jax.Array, *, approximate: bool) -> jax.Array:
    """Gate a value by the gelu of another array: y = value * gelu(gate).

    Use it in the feed-forward block of a transformer, value and gate two projections of its input.

    Scope      elementwise: any shape; gelu's p is exact
    Forward    p = (1 + erf(gate / sqrt(2))) / 2                       (F1)
               h = gate * p                                            (F2)
               y = value * h                                           (F3)
    Backward   dvalue = h * g                                          (B1) from F3
               dh = value * g                                          (B2) from F3
               dp = gate * dh                                          (B3) from F2
               dgate = p * dh + exp(-gate * gate / 2) / sqrt(2 * pi) * dp
                                                                       (B4) from F1, F2

    Args:
        value: any shape, floating.
        gate: value's shape, floating.
        approximate: whether p is gelu's approximation by tanh, whose lines gelu has, or exact.

    Returns:
        y: value's shape and dtype.

    Residuals: value and gate (arguments); p and h are recomputed.

    Numerics: computed in float32 at least, rounded once; the gate's limits at -inf and inf are
        those of gelu.

    Raises:
        TypeError: where value or gate is not floating.
        ValueError: where their shapes differ.

    Source: Shazeer (2020), GLU variants improve transformer, equation 6.
    """
    return _gated("geglu", value, gate, lambda x: gelu.reference(x, approximate=approximate))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GegluResiduals:
    value: jax.Array
    gate: jax.Array
    approximate: bool = field(metadata={"static": True})


def geglu_forward(
    value: jax.Array, gate: jax.Array, *, approximate: bool
) -> tuple[jax.Array, GegluResiduals]:
    y = geglu_reference(value, gate, approximate=approximate)  # F1 to F3
    return y, GegluResiduals(value, gate, approximate)


def geglu_backward(res: GegluResiduals, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    value, gate, g = _wide(res.value, _again(res.gate), g)
    h, saved = gelu.forward(gate, approximate=res.approximate)  # F1, F2, recomputed
    return h * g, gelu.backward(saved, value * g)[0]  # B1, B2 to B4


def reglu_reference(value: jax.Array, gate: jax.Array) -> jax.Array:
    """Gate a value by the relu of another array: y = value * relu(gate).

    Use it as swiglu where half of the products should be 0.

    Scope      elementwise: any shape
    Forward    h = where(gate <= 0, 0, gate)                           (F1)
               y = value * h                                           (F2)
    Backward   dvalue = h * g                                          (B1) from F2
               dh = value * g                                          (B2) from F2
               dgate = where(gate <= 0, 0, dh)                         (B3) from F1

    Args:
        value: any shape, floating.
        gate: value's shape, floating.

    Returns:
        y: value's shape and dtype.

    Residuals: value and gate (arguments); h is recomputed.

    Numerics: multiplied in float32 at least, rounded once. At the kink gate = 0 the subgradient
        is 0.

    Raises:
        TypeError: where value or gate is not floating.
        ValueError: where their shapes differ.

    Source: Shazeer (2020), GLU variants improve transformer, equation 6.
    """
    return _gated("reglu", value, gate, relu.reference)  # F1, F2


def reglu_forward(value: jax.Array, gate: jax.Array) -> tuple[jax.Array, GatedResiduals]:
    return reglu_reference(value, gate), GatedResiduals(value, gate)  # F1, F2


def reglu_backward(res: GatedResiduals, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    value, gate, g = _wide(res.value, res.gate, g)
    h, saved = relu.forward(gate)  # F1, recomputed
    return h * g, relu.backward(saved, value * g)[0]  # B1, B2, B3


def _gated(
    owner: str, value: jax.Array, gate: jax.Array, activation: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """value * activation(gate), in value's dtype."""
    value, gate = floating(owner, "value", value), floating(owner, "gate", gate)
    if value.shape != gate.shape:
        raise ValueError(
            f"{owner}: gate must have value's shape, {value.shape}, got {gate.shape}. Value and "
            "gate are two projections of the same width."
        )
    wide, gate = _wide(value, gate)
    return (wide * activation(gate)).astype(value.dtype)


def _wide(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """All of them in the dtype to compute in."""
    dtype = at_least_float32(*(array.dtype for array in arrays))
    return tuple(array.astype(dtype) for array in arrays)


def _again(gate: jax.Array) -> jax.Array:
    """The gate, to compute p and h from once more; not from forward, in float32, kept till then."""
    return lax.optimization_barrier(gate)  # so XLA does not know it for what forward read


def glu_cases() -> list[Case]:
    x, odd = 2 * normal(0, 4, 6), normal(1, 2, 4, 3)
    far = jnp.array([[1.0, -2.0, -jnp.inf, jnp.inf], [0.0, 3.0, 1e4, -1e4]], jnp.float32)
    rows = {"x": x, "axis": -1}
    return [
        Case("rows", (x,)),
        Case("axis 1 of 3", (odd,), {"axis": 1}, given=rows),
        Case("bfloat16", (x.astype(jnp.bfloat16),)),
        Case("zeros", (0 * x,), edge=True),
        Case("far out", (far,), edge=True),
        Case("empty", (x[:0],), edge=True),
    ]


def gated_cases(**options: bool) -> list[Case]:
    value, gate = normal(0, 4, 3), 2 * normal(1, 4, 3)
    far = jnp.array([-jnp.inf, -1e4, 0.0, 1e4], jnp.float32)
    low = jnp.bfloat16
    return [
        Case("matrix", (value, gate), options),
        Case("bfloat16", (value.astype(low), gate.astype(low)), options),
        Case("mixed dtypes", (value.astype(low), gate), options),
        Case("zeros", (value, 0 * gate), options, edge=True),
        Case("far out", (jnp.ones_like(far), far), options, edge=True),
        Case("empty", (value[:0], gate[:0]), options, edge=True),
    ]


def geglu_cases() -> list[Case]:
    exact = gated_cases(approximate=False)
    given = {"approximate": False}
    return [*exact, *(case._replace(given=given) for case in gated_cases(approximate=True)[:2])]


glu = Rule(glu_reference, glu_forward, glu_backward, glu_cases, budget=0)
swiglu = Rule(swiglu_reference, swiglu_forward, swiglu_backward, gated_cases, budget=0)
geglu = Rule(geglu_reference, geglu_forward, geglu_backward, geglu_cases, budget=0)
reglu = Rule(reglu_reference, reglu_forward, reglu_backward, gated_cases, budget=0)
