"""Text from a language model, a token at a time."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.installing import PyTree
from jaxprop.models.language import LanguageModel


class Choice(NamedTuple):
    """How the next token is drawn; arrays, so that changing one compiles nothing.

    temperature: the logits are divided by it; 0 takes the likeliest token.
    top_k:       among the k likeliest tokens alone; 0 for all.
    top_p:       among the likeliest tokens whose probabilities, added up, first reach p; 1 for all.
    """

    temperature: jax.typing.ArrayLike = 1.0
    top_k: jax.typing.ArrayLike = 0
    top_p: jax.typing.ArrayLike = 1.0


AS_IT_IS = Choice()


def choose(logits: jax.Array, choice: Choice, key: jax.Array) -> jax.Array:
    """A token for each row of logits (B, V), as the choice says, (B,)."""
    logits = logits.astype(jnp.float32)
    temperature = jnp.asarray(choice.temperature, jnp.float32)
    ordered = jnp.sort(logits, axis=-1, descending=True)
    k = jnp.where(jnp.asarray(choice.top_k) > 0, choice.top_k, logits.shape[-1])
    least = jnp.take(ordered, jnp.clip(k, 1, logits.shape[-1]) - 1, axis=-1)
    p = jax.nn.softmax(ordered / jnp.where(temperature > 0, temperature, 1), axis=-1)
    before = jnp.cumsum(p, axis=-1) - p  # what the likelier ones have together
    kept = jnp.sum(before < choice.top_p, axis=-1)
    nucleus = jnp.take_along_axis(ordered, jnp.maximum(kept, 1)[:, None] - 1, axis=-1)[:, 0]
    allowed = jnp.where(logits >= jnp.maximum(least, nucleus)[:, None], logits, -jnp.inf)
    drawn = jax.random.categorical(key, allowed / jnp.where(temperature > 0, temperature, 1))
    return jnp.where(temperature > 0, drawn, jnp.argmax(logits, axis=-1))


def generate(
    model: LanguageModel,
    params: PyTree,
    prompt: jax.Array,
    count: int,
    key: jax.Array,
    choice: Choice = AS_IT_IS,
) -> jax.Array:
    """`count` tokens that follow a prompt, (B, count).

    Args:
        model, params: a language model and its parameters.
        prompt: (B, T), integers; at least one token.
        count: how many; positive.
        key: of the draws; the token at place k (from 0) is drawn with `fold_in(key, k)`.
        choice: how each token is drawn.

    Raises:
        ValueError: where the prompt is empty, count is not positive, or both together are more than
            the model can read: than the positions that a GPT-2 has learned.
    """
    if prompt.ndim != 2 or not prompt.shape[1] or count < 1:
        raise ValueError(
            f"decoding: needs a prompt (B, T) of at least one token and a count of at least 1, got "
            f"{prompt.shape} and {count}. Begin with a line break, say."
        )
    empty, read = model.decoder
    past = empty(params, prompt.shape[0], prompt.shape[1] + count)
    logits, past = read(params, prompt, past)

    def step(carry: tuple, k: jax.Array) -> tuple[tuple, jax.Array]:
        logits, past = carry
        token = choose(logits, choice, jax.random.fold_in(key, k)).astype(prompt.dtype)
        logits, past = read(params, token[:, None], past)
        return (logits[:, -1], past), token

    _, tokens = lax.scan(step, (logits[:, -1], past), jnp.arange(count))
    return tokens.T
