"""What a language model reads: tokens, their positions and segments; and what the blocks get."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.installing import PyTree

# The label of a token that is not counted: padding, or a prompt.
IGNORED = -1


class Inputs(NamedTuple):
    """What a language model reads.

    tokens:    (B, T), integers.
    positions: (T,) or (B, T), integers; None to count from 0, from each segment's start where
               there are segments.
    segments:  (B, T), integers: tokens see those of their own segment (packed documents). Equal
               numbers stand side by side. None for one segment.
    dropout:   the rate, a scalar; it counts where a key is given. None for no dropout.
    """

    tokens: jax.Array
    positions: jax.Array | None = None
    segments: jax.Array | None = None
    dropout: jax.Array | None = None


class Context(NamedTuple):
    """What every block gets besides h: Inputs without the tokens, positions made."""

    positions: jax.Array
    segments: jax.Array | None
    dropout: jax.Array | None


def context_of(params: PyTree, x: Inputs) -> Context:
    """What the blocks get of the inputs; positions are counted where none are given."""
    _check_inputs(x)
    positions = x.positions
    if positions is None and "positions" in params:
        _check_length(x.tokens.shape[1], len(params["positions"]))
    if positions is None:
        positions = jnp.arange(x.tokens.shape[-1], dtype=jnp.int32)
        if x.segments is not None:
            first = jnp.diff(x.segments, axis=-1, prepend=x.segments[:, :1] - 1) != 0
            starts = lax.cummax(jnp.where(first, positions, 0), axis=1)
            positions = positions - starts
    return Context(positions, x.segments, x.dropout)


def _check_length(length: int, learned: int) -> None:
    if length > learned:
        raise ValueError(
            f"language model: a sequence must be no longer than the positions that are learned, "
            f"{learned}, got {length} tokens. Cut it, or make the model with a larger context."
        )


def segments_of(context: Context) -> dict[str, jax.Array]:
    """The segments as attention takes them, by name; nothing where there are none."""
    if context.segments is None:
        return {}
    return {"q_segments": context.segments, "k_segments": context.segments}


def _check_inputs(x: Inputs) -> None:
    if not isinstance(x, Inputs):
        raise TypeError(
            f"language model: the inputs must be Inputs, got {type(x).__name__}. Give "
            "Inputs(tokens)."
        )
    if x.tokens.ndim != 2 or not jnp.issubdtype(x.tokens.dtype, jnp.integer):
        raise ValueError(
            f"language model: tokens must be integers (B, T), got {x.tokens.dtype} "
            f"{x.tokens.shape}. Add an axis for the batch to one sequence."
        )
    shapes = {"segments": (x.tokens.shape,), "positions": (x.tokens.shape, x.tokens.shape[1:])}
    for name, allowed in shapes.items():
        array = getattr(x, name)
        if array is not None and array.shape not in allowed:
            raise ValueError(
                f"language model: {name} must have the shape of tokens, {x.tokens.shape}, got "
                f"{array.shape}. Give a number for each token."
            )
