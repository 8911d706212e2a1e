"""The losses, forward and backward: the rules against automatic differentiation and optax."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import jaxprop
from jaxprop.benchmarking.steps import relative_error
from jaxprop.benchmarking.timing import Contender, Entry, memory
from jaxprop.installing import PyTree

# How far gradients may lie from float64, of each argument's largest. In bfloat16 plain code sums
# probabilities to a few per cent, which is what people train with.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
ROWS, FEATURES, BLOCK = 4096, 256, 128

Loss = Callable[..., jax.Array]


def losses_entries(quick: bool) -> Iterator[tuple[str, Callable[[], Entry]]]:
    """Names, and what makes each entry when its turn has come."""
    rows = 256 if quick else ROWS
    classes = 1024 if quick else 8192
    for dtype in ("float32", "bfloat16"):
        size = f"{dtype}-{rows}x{classes}"
        for make in (
            softmax_cross_entropy_entry,
            kl_divergence_entry,
            sigmoid_binary_cross_entropy_entry,
            huber_entry,
        ):
            name = f"rule-{make.__name__.removesuffix('_entry')}-{size}"
            yield name, partial(make, name, dtype, rows, classes)
    for vocabulary in (1024,) if quick else (8192, 50304):
        name = f"rule-linear_cross_entropy-float32-{rows}x{FEATURES}x{vocabulary}"
        yield name, partial(linear_cross_entropy_entry, name, rows, vocabulary)
        name = f"rule-linear_token_log_probs-float32-{rows}x{FEATURES}x{vocabulary}"
        yield name, partial(linear_token_log_probs_entry, name, rows, vocabulary)


def softmax_cross_entropy_entry(name: str, dtype: str, rows: int, classes: int) -> Entry:
    def plain(logits: jax.Array, labels: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(logits)
        return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], axis=-1))

    def by_optax(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    ways: dict[str, Loss] = {"automatic": plain, "optax": by_optax}
    ways["by hand"] = jaxprop.softmax_cross_entropy
    return _entry(name, ways, 1, _normal(dtype, 0, rows, classes), _labels(rows, classes))


def kl_divergence_entry(name: str, dtype: str, rows: int, classes: int) -> Entry:
    def plain(logits: jax.Array, target_logits: jax.Array) -> jax.Array:
        log_q, log_p = jax.nn.log_softmax(logits), jax.nn.log_softmax(target_logits)
        return jnp.mean(optax.losses.kl_divergence_with_log_targets(log_q, log_p))

    args = _normal(dtype, 0, rows, classes), _normal(dtype, 1, rows, classes)
    ways: dict[str, Loss] = {"automatic": plain, "by hand": jaxprop.kl_divergence}
    return _entry(name, ways, 2, *args)


def sigmoid_binary_cross_entropy_entry(name: str, dtype: str, rows: int, classes: int) -> Entry:
    def by_optax(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, labels))

    args = _normal(dtype, 0, rows, classes), jax.nn.sigmoid(_normal(dtype, 1, rows, classes))
    ways: dict[str, Loss] = {"automatic": by_optax}
    ways["by hand"] = jaxprop.sigmoid_binary_cross_entropy
    return _entry(name, ways, 2, *args)


def huber_entry(name: str, dtype: str, rows: int, classes: int) -> Entry:
    def by_optax(y_hat: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean(optax.huber_loss(y_hat, y))

    args = _normal(dtype, 0, rows, classes), _normal(dtype, 1, rows, classes)
    ways: dict[str, Loss] = {"automatic": by_optax, "by hand": jaxprop.huber}
    return _entry(name, ways, 2, *args)


def linear_cross_entropy_entry(name: str, rows: int, vocabulary: int) -> Entry:
    def plain(h: jax.Array, w: jax.Array, labels: jax.Array) -> jax.Array:
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(h @ w, labels))

    def checkpointed(h: jax.Array, w: jax.Array, labels: jax.Array) -> jax.Array:
        """The same blocks, recomputed by automatic differentiation."""

        @jax.checkpoint
        def of_block(block: tuple[jax.Array, jax.Array]) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(block[0] @ w, block[1])

        blocks = h.reshape(-1, BLOCK, FEATURES), labels.reshape(-1, BLOCK)
        return jnp.mean(lax.map(of_block, blocks))

    rule = jaxprop.linear_cross_entropy
    ways: dict[str, Loss] = {"automatic": plain, "checkpointed blocks": checkpointed}
    ways["by hand"] = rule
    ways["by hand, recomputed"] = rule.bind(variant="recompute")
    return _entry(name, ways, 2, *_head(rows, vocabulary))


def linear_token_log_probs_entry(name: str, rows: int, vocabulary: int) -> Entry:
    def plain(h: jax.Array, w: jax.Array, tokens: jax.Array) -> jax.Array:
        return -optax.softmax_cross_entropy_with_integer_labels(h @ w, tokens)

    def weighted(log_probs: Loss, *args: jax.Array) -> jax.Array:
        """A cotangent of its own for each token."""
        return jnp.mean(jnp.cos(jnp.arange(rows, dtype=jnp.float32)) * log_probs(*args))

    rules: dict[str, Loss] = {"automatic": plain, "by hand": jaxprop.linear_token_log_probs}
    ways: dict[str, Loss] = {way: partial(weighted, rule) for way, rule in rules.items()}
    return _entry(name, ways, 2, *_head(rows, vocabulary))


def _head(rows: int, vocabulary: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The rows, the weights and the labels of a last layer."""
    h, w = _normal("float32", 0, rows, FEATURES), _normal("float32", 1, FEATURES, vocabulary)
    return h, w / FEATURES**0.5, _labels(rows, vocabulary)


def _normal(dtype: str, seed: int, *shape: int) -> jax.Array:
    return (2 * jax.random.normal(jax.random.key(seed), shape)).astype(dtype)


def _labels(rows: int, classes: int) -> jax.Array:
    return jax.random.randint(jax.random.key(2), (rows,), 0, classes)


def _entry(name: str, ways: Mapping[str, Loss], differentiated: int, *args: jax.Array) -> Entry:
    """Value and gradient in the first arguments, each way, against the first way in float64."""
    positions = tuple(range(differentiated))
    truth = _truth(ways["automatic"], positions, args)
    contenders = {way: _contender(loss, positions, args, truth) for way, loss in ways.items()}
    return Entry(name, tuple(way for way in ways if not way.startswith("by hand")), contenders)


def _truth(loss: Loss, positions: tuple[int, ...], args: tuple[jax.Array, ...]) -> PyTree:
    with jax.enable_x64(True):
        wide = [x.astype(jnp.float64) if i in positions else x for i, x in enumerate(args)]
        return jax.tree.map(np.asarray, jax.jit(jax.grad(loss, positions))(*wide))


def _contender(
    loss: Loss, positions: tuple[int, ...], args: tuple[jax.Array, ...], truth: PyTree
) -> Contender:
    started = time.perf_counter()
    compiled = jax.jit(jax.value_and_grad(loss, positions)).lower(*args).compile()
    seconds = time.perf_counter() - started
    error = relative_error(compiled(*args)[1], truth)
    right = error < TOLERANCE[args[0].dtype.name]
    return Contender(
        lambda: jax.block_until_ready(compiled(*args)) and None,
        "" if right else f"relative error {error:.2g}",
        seconds,
        result=f"error {error:.1e}",
        **memory(compiled),
    )
