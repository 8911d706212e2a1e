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
    robust_losses,
    rotary,
    rotary_scaling,
    self_gated,
    softmax,
    token_log_probs,
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
    "robust_losses",
    "rotary",
    "rotary_scaling",
    "self_gated",
    "softmax",
    "token_log_probs",
]
