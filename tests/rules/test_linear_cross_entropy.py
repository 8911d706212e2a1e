"""linear_cross_entropy and log-probabilities of tokens: sizes, variants, what is held, peers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxprop import Rule, linear_cross_entropy, linear_token_log_probs, token_log_probs
from jaxprop.checking.residuals import kept
from tests.rules.low_precision import assert_no_worse
from tests.rules.peers import assert_agrees_with_jax, assert_agrees_with_torch
from tests.rules.refusing import assert_refuses, not_floating
from tests.tolerances import assert_near

REDUCE = {"mean": jnp.mean, "sum": jnp.sum, "none": lambda losses: losses}
VARIANTS = ("forward", "recompute")


def arguments(n: int, d: int, vocabulary: int) -> list[jax.Array]:
    h = jnp.asarray(np.random.default_rng(0).normal(size=(n, d)))
    w = jnp.asarray(np.random.default_rng(1).normal(size=(d, vocabulary)))
    labels = jnp.asarray(np.random.default_rng(2).integers(0, vocabulary, n))
    return [h, w, labels]


def whole(h: jax.Array, w: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(h @ w, labels)


def gradients(rule: Rule, *args: Any) -> tuple:
    """The value and every cotangent, for a g of ones."""

    @jax.jit
    def run(*args: Any) -> tuple:
        loss, saved = rule.forward(*args)
        return loss, rule.backward(saved, jnp.ones_like(loss))

    return run(*args)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("reduction", REDUCE)
@pytest.mark.parametrize(("n", "vocabulary"), [(1, 5), (7, 13), (8, 1)])
@pytest.mark.usefixtures("x64")
def test_is_that_of_whole_logits_whatever_the_sizes(
    variant: str, reduction: str, n: int, vocabulary: int
) -> None:
    """Rows that blocks of 4 do not divide; a prime vocabulary; one row, one class."""
    options = {"variant": variant, "reduction": reduction, "block": 4}
    assert_agrees_with_jax(
        linear_cross_entropy,
        lambda *args: REDUCE[reduction](whole(*args)),
        arguments(n, 3, vocabulary),
        reduced=n * vocabulary,
        **options,
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_g_gives_no_gradient_and_twice_g_gives_twice_of_it(variant: str, reduction: str) -> None:
    rule = linear_cross_entropy.bind(variant=variant, reduction=reduction, block=4)
    _, saved = rule.forward(*arguments(7, 3, 13))
    once, none = rule.backward(saved, jnp.float32(1.5)), rule.backward(saved, jnp.float32(0))
    twice = rule.backward(saved, jnp.float32(3.0))
    for position in (0, 1):
        np.testing.assert_array_equal(2 * once[position], twice[position])
        assert not np.any(none[position])
        assert np.any(once[position])


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_saved_is_what_the_docstring_says(variant: str) -> None:
    n, d, vocabulary = 32, 8, 64
    rule = linear_cross_entropy.bind(variant=variant, block=4)
    args = tuple(arguments(n, d, vocabulary))
    held = {"forward": n * d + d * vocabulary, "recompute": 2 * n}[variant]
    assert kept(rule, args).bytes == 4 * held
    assert kept(rule.reference, args).bytes >= 4 * n * vocabulary


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("vocabulary", [8192, 50304])
def test_temporaries_are_a_fifteenth_of_those_of_whole_logits(
    variant: str, vocabulary: int
) -> None:
    n, d = 4096, 256
    args = (
        jax.ShapeDtypeStruct((n, d), jnp.float32),
        jax.ShapeDtypeStruct((d, vocabulary), jnp.float32),
        jax.ShapeDtypeStruct((n,), jnp.int32),
    )

    def temp(function: Callable) -> int:
        compiled = jax.jit(jax.value_and_grad(function, (0, 1))).lower(*args).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    plain = temp(lambda *args: whole(*args).mean())
    assert temp(linear_cross_entropy.bind(variant=variant)) <= 0.07 * plain


def test_the_loss_alone_computes_no_gradient() -> None:
    n, d, vocabulary = 256, 512, 4096
    args = (
        jax.ShapeDtypeStruct((n, d), jnp.float32),
        jax.ShapeDtypeStruct((d, vocabulary), jnp.float32),
        jax.ShapeDtypeStruct((n,), jnp.int32),
    )
    compiled = jax.jit(linear_cross_entropy.bind(block=64)).lower(*args).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * d * vocabulary


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_gradient_of_w_is_added_up_in_float32(variant: str) -> None:
    """Over 512 blocks: a bfloat16 sum would stand still after 256 terms of a size."""
    n = 1024
    h, w = jnp.ones((n, 1), jnp.bfloat16), jnp.zeros((1, 2), jnp.bfloat16)
    rule = linear_cross_entropy.bind(variant=variant, reduction="sum", block=2)
    _, (_, dw, *_) = gradients(rule, h, w, jnp.zeros(n, jnp.int32))
    np.testing.assert_array_equal(dw, jnp.array([[-n / 2, n / 2]], jnp.bfloat16))


@pytest.mark.slow
def test_bfloat16_is_no_worse_than_automatic_differentiation_of_plain_code() -> None:
    labels = jax.random.randint(jax.random.key(2), (48,), 0, 50)

    def linear_cross_entropy_reference(h: jax.Array, w: jax.Array) -> jax.Array:
        return linear_cross_entropy.reference(h, w, labels)

    def forward(h: jax.Array, w: jax.Array) -> tuple:
        return linear_cross_entropy.forward(h, w, labels, block=16)

    def backward(saved: Any, g: jax.Array) -> tuple:
        return linear_cross_entropy.backward(saved, g)[:2]

    def draw(seed: int) -> tuple:
        h = jnp.asarray(np.random.default_rng(seed).normal(size=(48, 16)))
        w = jnp.asarray(np.random.default_rng(seed + 100).normal(size=(16, 50)))
        return h.astype(jnp.bfloat16), w.astype(jnp.bfloat16)

    rule = Rule(linear_cross_entropy_reference, forward, backward)
    assert_no_worse(rule, lambda h, w: whole(h, w, labels).mean(), draw)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_vocabulary_of_131072_in_bfloat16(variant: str) -> None:
    """An odd number of tokens, and one class more, which nothing divides."""
    h, w, labels = arguments(17, 8, 131073)
    h, w = h.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    rule = linear_cross_entropy.bind(variant=variant, block=4)
    loss, (dh, dw, *_) = gradients(rule, h, w, labels)
    with jax.enable_x64(True):
        args = h.astype(jnp.float64), w.astype(jnp.float64), labels
        run = jax.jit(jax.value_and_grad(lambda *args: whole(*args).mean(), (0, 1)))
        truth, (dh_true, dw_true) = run(*args)
    assert_near(loss, truth, reduced=131073)
    assert_near(dh, dh_true, reduced=17)
    assert_near(dw, dw_true, reduced=17)


@pytest.mark.slow
def test_on_explicit_axes_the_error_says_to_use_auto_axes_and_there_it_works() -> None:
    h, w, labels = arguments(8, 3, 13)
    rule = linear_cross_entropy.bind(block=2)
    expected = gradients(rule, h, w, labels)
    for kind in (AxisType.Explicit, AxisType.Auto):
        mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
        rows = NamedSharding(mesh, PartitionSpec("data"))
        with jax.set_mesh(mesh):
            args = jax.device_put(h, rows), w, jax.device_put(labels, rows)
            if kind is AxisType.Auto:
                assert_near(jax.device_get(gradients(rule, *args)), expected, reduced=100)
                continue
            with pytest.raises(ValueError, match="Make the mesh with axis_types=") as refused:
                gradients(rule, *args)
            assert str(refused.value).startswith("linear_cross_entropy: ")


PEER_OPTIONS = pytest.mark.parametrize("ignored", [None, 3])


@pytest.mark.peers
@PEER_OPTIONS
@pytest.mark.usefixtures("x64")
def test_tokens_have_the_log_probabilities_that_torch_gives(ignored: int | None) -> None:
    logits, tokens = arguments(6, 5, 5)[0], jnp.array([0, 4, 3, 2, 1, 3])

    def peer(torch: Any, logits: Any, tokens: Any) -> Any:
        y = torch.log_softmax(logits, -1).gather(-1, tokens[:, None])[:, 0]
        return y if ignored is None else torch.where(tokens == ignored, 0.0, y)

    args = [logits, tokens]
    assert_agrees_with_torch(token_log_probs, peer, args, reduced=30, ignore_index=ignored)


@PEER_OPTIONS
@pytest.mark.usefixtures("x64")
def test_linear_token_log_probs_are_those_of_whole_capped_logits(ignored: int | None) -> None:
    def peer(h: jax.Array, w: jax.Array, tokens: jax.Array, cap: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(cap * jnp.tanh(h @ w / cap))
        y = jnp.take_along_axis(log_p, tokens[:, None], axis=-1)[:, 0]
        return y if ignored is None else jnp.where(tokens == ignored, 0, y)

    args = [*arguments(7, 3, 13), jnp.asarray(2.0)]
    options = {"block": 2, "ignore_index": ignored}
    assert_agrees_with_jax(linear_token_log_probs, peer, args, reduced=100, **options)


@pytest.mark.slow
def test_a_preference_loss_needs_no_whole_logits() -> None:
    """DPO's: the difference of two sums of log-probabilities, each token with its own cotangent."""
    h, w, tokens = arguments(8, 3, 13)

    def loss(log_probs: Callable, w: jax.Array) -> jax.Array:
        y = log_probs(h, w, tokens)
        return -jax.nn.log_sigmoid(jnp.sum(y[:4]) - jnp.sum(y[4:]))

    def of_whole(h: jax.Array, w: jax.Array, tokens: jax.Array) -> jax.Array:
        return -whole(h, w, tokens)

    blocks = linear_token_log_probs.bind(block=2)
    got, expected = (jax.grad(loss, 1)(f, w) for f in (blocks, of_whole))
    assert_near(got, expected, reduced=100)


def test_linear_cross_entropy_refuses_what_does_not_fit() -> None:
    h, w, labels = arguments(6, 3, 5)
    rule, name = linear_cross_entropy, "linear_cross_entropy"
    message = not_floating(name, "w", "int32")
    assert_refuses(rule, (h, w.astype(jnp.int32), labels), TypeError, message)
    message = (
        f"{name}: labels must be integers, got float32. Convert them with labels.astype; for "
        "distributions use softmax_cross_entropy on whole logits."
    )
    assert_refuses(rule, (h, w, labels.astype(jnp.float32)), TypeError, message)
    message = (
        f"{name}: h must be (..., D) and w (D, V) with V of at least 1, got h (6, 3) and w (5, 3). "
        "Transpose a (V, D) matrix of embeddings."
    )
    assert_refuses(rule, (h, w.T, labels), ValueError, message)
    message = (
        f"{name}: labels must be (6,), one for each row of h, got (5,). Add, drop or repeat an "
        "axis."
    )
    assert_refuses(rule, (h, w, labels[:5]), ValueError, message)
    message = (
        f"{name}: soft_cap must have the shape (), got (5,). Nothing is broadcast: add, drop or "
        "repeat an axis, or leave it None."
    )
    args = (h, w, labels, None, None, None, jnp.ones(5))
    assert_refuses(rule, args, ValueError, message)


@pytest.mark.parametrize("block", [0, -1, True, 2.0])
def test_a_block_that_is_no_positive_integer_is_refused(block: object) -> None:
    for rule in (linear_cross_entropy, linear_token_log_probs):
        message = (
            f"{rule.name}: block must be a positive integer, the rows of logits held at once, got "
            f"{block!r}."
        )
        assert_refuses(rule, tuple(arguments(6, 3, 5)), ValueError, message, block=block)


def test_an_unknown_variant_is_refused() -> None:
    message = (
        "linear_cross_entropy: variant must be one of ('forward', 'recompute'), got 'backward'."
    )
    args = tuple(arguments(6, 3, 5))
    assert_refuses(linear_cross_entropy, args, ValueError, message, variant="backward")


def test_tokens_that_do_not_fit_are_refused() -> None:
    logits, _, tokens = arguments(6, 5, 5)
    message = (
        "token_log_probs: tokens must be integers, got float32. Convert them with tokens.astype."
    )
    assert_refuses(token_log_probs, (logits, tokens.astype(jnp.float32)), TypeError, message)
    message = (
        "token_log_probs: logits must be (..., V) with V of at least 1, and tokens (...), got "
        "logits (6, 5) and tokens (5,). Give each row of logits one token."
    )
    assert_refuses(token_log_probs, (logits, tokens[:5]), ValueError, message)
    message = (
        "linear_token_log_probs: tokens must be (6,), one for each row of h, got (5,). Add, drop "
        "or repeat an axis."
    )
    args = (logits, jnp.ones((5, 7)), tokens[:5])
    assert_refuses(linear_token_log_probs, args, ValueError, message)
