"""The rules, one file per family that shares a derivation; jaxprop.rules.<family>.<rule>."""

from jaxprop.rules import (
    activations,
    activity,
    cross_entropy,
    linear,
    losses,
    penalties,
    self_gated,
    softmax,
)

__all__ = [
    "activations",
    "activity",
    "cross_entropy",
    "linear",
    "losses",
    "penalties",
    "self_gated",
    "softmax",
]
