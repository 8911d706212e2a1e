"""Embedding: rows of a table, chosen by integers."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.precision import at_least_float32, floating
from jaxprop.rule import Case, Rule
from jaxprop.samples import normal


def embedding_reference(tokens: jax.Array, table: jax.Array) -> jax.Array:
    """Look up the row of each token: y = table[tokens].

    Use it as the first layer of anything that reads tokens.

    Scope      tokens (T,), table (V, D)
    Forward    chosen = one_hot(tokens, table.T)                       (F1)
               y = chosen @ table                                      (F2)
    Backward   dtable = chosen.T @ g                                   (B1) from F2

    Args:
        tokens: (...), integers from 0 to V - 1; no cotangent.
        table: (V, D), floating.

    Returns:
        y: (..., D), table's dtype.

    Residuals: tokens (an argument).

    Numerics: a lookup, nothing is multiplied. A token below 0 counts as 0 and one above V - 1 as
        V - 1, in value and gradient: jit cannot raise. The rows of dtable are sums over all places
        where the token stands, added up in float32 for lower precisions and rounded once.

    Raises:
        TypeError: where tokens are not integers, or table is not floating.
        ValueError: where table is not (V, D), or V is 0.

    Source: B1 is the weight gradient of a linear map whose examples are one-hot.
    """
    _check(tokens, table)
    return table[_numbers(tokens, table.shape[0])]  # F1, F2


def _check(tokens: jax.Array, table: jax.Array) -> None:
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(
            f"embedding: tokens must be integers, got {tokens.dtype}. Convert them with "
            "tokens.astype(jnp.int32)."
        )
    if floating("embedding", "table", table).ndim != 2 or not table.shape[0]:
        raise ValueError(
            f"embedding: table must be (V, D) with at least one row, got {table.shape}. Give one "
            "row per token of the vocabulary."
        )


def _numbers(tokens: jax.Array, vocabulary: int) -> jax.Array:
    """The tokens as numbers of rows, in integers that can count that many."""
    dtype = jnp.int32 if tokens.dtype.itemsize < 4 else tokens.dtype
    return jnp.clip(tokens.astype(dtype), 0, vocabulary - 1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EmbeddingResiduals:
    tokens: jax.Array
    vocabulary: int = field(metadata={"static": True})


def embedding_forward(tokens: jax.Array, table: jax.Array) -> tuple[jax.Array, EmbeddingResiduals]:
    _check(tokens, table)
    y = table[_numbers(tokens, table.shape[0])]  # F1, F2
    return y, EmbeddingResiduals(tokens, table.shape[0])


def embedding_backward(res: EmbeddingResiduals, g: jax.Array) -> tuple[None, jax.Array]:
    zeros = jnp.zeros((res.vocabulary, g.shape[-1]), at_least_float32(g.dtype))
    rows = _numbers(res.tokens, res.vocabulary)
    return None, zeros.at[rows].add(g.astype(zeros.dtype))  # B1


def embedding_cases() -> list[Case]:
    table, tokens = (
        normal(0, 7, 4),
        np.array([[3, 0, 6, 3], [3, 3, 1, 0], [5, 6, 0, 2]], np.int32),
    )
    given = {"tokens": tokens[0]}
    return [
        Case("sentences", (tokens, table), given=given),
        Case("one sentence", (tokens[0], table)),
        Case("one token", (tokens[0, 0], table), given=given),
        Case("bfloat16", (tokens, table.astype(jnp.bfloat16)), given=given),
        Case("one word", (0 * tokens, table[:1]), given={"tokens": 0 * tokens[0]}),
        Case("out of range", (tokens * 3 - 5, table), edge=True),
        Case("no tokens", (tokens[:0], table), edge=True),
    ]


embedding = Rule(
    embedding_reference, embedding_forward, embedding_backward, embedding_cases, budget=0
)
