"""Embedding: peers, repeated and impossible tokens, precision, errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop import embedding
from jaxprop.samples import normal
from tests.rules.oracle import by_hand
from tests.rules.peers import assert_agrees_with_torch
from tests.rules.refusing import assert_refuses, not_floating

TOKENS, TABLE = jnp.array([[1, 0, 1], [4, 1, 4]]), normal(0, 5, 3)


@pytest.mark.slow
@pytest.mark.peers
@pytest.mark.usefixtures("x64")
def test_it_is_that_of_torch() -> None:
    def peer(torch: Any, tokens: Any, table: Any) -> Any:
        return torch.nn.functional.embedding(tokens, table)

    args = [TOKENS.astype(jnp.int64), TABLE.astype(jnp.float64)]
    assert_agrees_with_torch(embedding, peer, args, reduced=3)


def test_a_token_out_of_range_counts_as_the_nearest_in_value_and_gradient() -> None:
    tokens, nearest = jnp.array([-1, 5, 2, 1000, -1000]), jnp.array([0, 4, 2, 4, 0])
    g = normal(1, 5, 3)
    y, (_, dtable) = by_hand(embedding, g, tokens, TABLE)
    expected, saved = embedding.forward(nearest, TABLE)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(dtable, embedding.backward(saved, g)[1])


@pytest.mark.slow
def test_a_token_that_stands_300_times_has_its_cotangents_added_up_in_float32() -> None:
    """In bfloat16 a running sum of ones stops at 256."""
    table = TABLE.astype(jnp.bfloat16)
    y, saved = embedding.forward(jnp.zeros(300, jnp.int32), table)
    _, dtable = embedding.backward(saved, jnp.ones_like(y))
    assert dtable.dtype == jnp.bfloat16
    np.testing.assert_array_equal(dtable[0].astype(jnp.float32), np.full(3, 300.0))
    np.testing.assert_array_equal(dtable[1:].astype(jnp.float32), np.zeros((4, 3)))


def test_tokens_are_all_that_is_saved_and_have_no_cotangent() -> None:
    y, saved = embedding.forward(TOKENS, TABLE)
    (kept,) = jax.tree.leaves(saved)
    assert kept is TOKENS
    assert embedding.backward(saved, y)[0] is None


@pytest.mark.slow
def test_small_integers_reach_the_whole_of_a_large_table() -> None:
    """int8 cannot hold the number of rows that tokens are held against."""
    table = normal(0, 300, 2)
    y, saved = embedding.forward(jnp.array([127, -1], jnp.int8), table)
    np.testing.assert_array_equal(y, table[jnp.array([127, 0])])
    _, dtable = embedding.backward(saved, jnp.ones_like(y))
    np.testing.assert_array_equal(jnp.flatnonzero(dtable[:, 0]), [0, 127])


def test_what_is_no_token_or_no_table_is_refused() -> None:
    message = (
        "embedding: tokens must be integers, got float32. Convert them with "
        "tokens.astype(jnp.int32)."
    )
    assert_refuses(embedding, (TOKENS.astype(jnp.float32), TABLE), TypeError, message)
    message = not_floating("embedding", "table", "int32")
    assert_refuses(embedding, (TOKENS, TABLE.astype(jnp.int32)), TypeError, message)
    for table in (TABLE[0], TABLE[:0], TABLE[None]):
        message = (
            "embedding: table must be (V, D) with at least one row, got "
            f"{table.shape}. Give one row per token of the vocabulary."
        )
        assert_refuses(embedding, (TOKENS, table), ValueError, message)
