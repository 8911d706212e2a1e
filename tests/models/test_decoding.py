"""Decoding with kept keys and values, or states: the same logits; what may be drawn; errors."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop.checking.compiling import quickly
from jaxprop.models.decoding import Choice, choose, generate
from jaxprop.models.inputs import Inputs
from tests.models.test_recurrent import RECURRENT, tiny_gru, tiny_lstm
from tests.models.test_transformer import (
    MODELS,
    REDUCED,
    TOKENS,
    parameters,
    slow,
    tiny_gpt2,
    tiny_llama,
)
from tests.tolerances import assert_near

pytestmark = pytest.mark.usefixtures("x64")

LOGITS = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]]))


# One compilation for every choice: its numbers are arguments.
choose_often = quickly(jax.vmap(choose, in_axes=(None, None, 0)))


def draws(choice: Choice) -> np.ndarray:
    """(2000, 2) tokens, one for each row of LOGITS."""
    return np.asarray(choose_often(LOGITS, choice, jax.random.split(jax.random.key(0), 2000)))


def drawn(choice: Choice) -> list[set[int]]:
    """Which tokens ever come, by row."""
    return [set(draws(choice)[:, row].tolist()) for row in range(2)]


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (tiny_llama, {"window": 3}),
        slow(tiny_gpt2, {"tied": False}),
        (tiny_lstm, {"tied": True}),
        slow(tiny_gru, {}),
    ],
)
def test_logits_read_in_pieces_are_those_of_the_whole(make: Callable, options: dict) -> None:
    """Four tokens, then one at a time, in a cache with room to spare where there is one."""
    model = make(**options)
    params, tokens = parameters(model), jnp.asarray(TOKENS)

    @quickly
    def pieces(params: dict) -> jax.Array:
        empty, read = model.decoder
        past, parts, at = empty(params, len(tokens), 8), [], 0
        for count in (4, 1, 1):
            logits, past = read(params, tokens[:, at : at + count], past)
            parts, at = [*parts, logits], at + count
        return jnp.concatenate(parts, axis=1)

    assert_near(pieces(params), model.network.reference(params, Inputs(tokens)), reduced=REDUCED)


def test_a_temperature_of_0_takes_the_likeliest() -> None:
    assert drawn(Choice(temperature=0.0)) == [{0}, {3}]


def test_top_k_leaves_the_k_likeliest() -> None:
    assert drawn(Choice(top_k=2)) == [{0, 1}, {2, 3}]
    assert drawn(Choice(top_k=9)) == drawn(Choice())


def test_top_p_leaves_the_likeliest_that_reach_p_together() -> None:
    """0.5 and 0.3 reach 0.6; the likeliest alone is left where p is tiny."""
    assert drawn(Choice(top_p=0.6)) == [{0, 1}, {2, 3}]
    assert drawn(Choice(top_p=1e-9)) == [{0}, {3}]


def test_tokens_come_as_often_as_their_probability() -> None:
    shares = np.bincount(draws(Choice())[:, 0], minlength=4) / 2000
    # Four standard deviations of a share of a half.
    assert np.max(np.abs(shares - np.exp(LOGITS[0]))) < 4 * 0.5 / 2000**0.5


@pytest.mark.slow
@pytest.mark.parametrize("make", (MODELS | RECURRENT).values(), ids=MODELS | RECURRENT)
def test_what_is_generated_is_what_the_whole_network_would_choose(make: Callable) -> None:
    model = make()
    params, prompt = parameters(model), jnp.asarray(TOKENS[:, :3])
    tokens = quickly(
        lambda params: generate(model, params, prompt, 4, jax.random.key(0), Choice(0.0))
    )(params)
    so_far = prompt
    for _ in range(4):
        logits = model.network.reference(params, Inputs(so_far))
        so_far = jnp.concatenate([so_far, jnp.argmax(logits[:, -1:], axis=-1)], axis=1)
    assert np.array_equal(tokens, so_far[:, 3:])


@pytest.mark.parametrize(("length", "count"), [(0, 3), (2, 0)])
def test_nothing_to_read_or_to_write_is_refused(length: int, count: int) -> None:
    model = tiny_gpt2()
    prompt = jnp.zeros((1, length), jnp.int32)
    with pytest.raises(ValueError, match="decoding: needs a prompt") as refused:
        generate(model, parameters(model), prompt, count, jax.random.key(0))
    assert str(refused.value) == (
        f"decoding: needs a prompt (B, T) of at least one token and a count of at least 1, got "
        f"(1, {length}) and {count}. Begin with a line break, say."
    )


def test_more_tokens_than_learned_positions_are_refused() -> None:
    model = tiny_gpt2()
    with pytest.raises(ValueError, match="positions that are learned") as refused:
        model.decoder.empty(parameters(model), 1, 9)
    assert str(refused.value) == (
        "decoding: the cache must be no longer than the positions that are learned, 8, got 9 "
        "tokens. Read and write less."
    )
