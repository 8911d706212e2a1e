"""The rules, one file per family that shares a derivation; jaxprop.rules.<family>.<rule>."""

from jaxprop.rules import (
    activations,
    activity,
    binary_cross_entropy,
    cross_entropy,
    layer_norm,
    linear,
    linear_cross_entropy,
    losses,
    penalties,
    rotary,
    rotary_scaling,
    self_gated,
    softmax,
)

__all__ = [
    "activations",
    "activity",
    "binary_cross_entropy",
    "cross_entropy",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "losses",
    "penalties",
    "rotary",
    "rotary_scaling",
    "self_gated",
    "softmax",
]
