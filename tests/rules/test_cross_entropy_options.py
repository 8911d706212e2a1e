"""softmax_cross_entropy's weights, smoothing, z-loss and ignored labels; what it holds; peers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprop import Rule, softmax_cross_entropy
from jaxprop.checking.residuals import kept
from tests.rules.low_precision import assert_no_worse
from tests.rules.peers import assert_agrees_with_jax, assert_agrees_with_torch
from tests.rules.refusing import assert_refuses, not_floating
from tests.tolerances import assert_near

REDUCTIONS = ("mean", "sum", "none")
LABELS = np.array([0, 4, 2, 2, 1, 3], np.int32)


def normal(seed: int, *shape: int) -> jax.Array:
    return 2 * jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def distributions() -> jax.Array:
    return jax.nn.softmax(normal(1, 6, 5))


def both(*args: Any, **options: Any) -> tuple:
    """The value and every cotangent, for a g of ones."""

    @jax.jit
    def run(*args: Any) -> tuple:
        loss, saved = softmax_cross_entropy.forward(*args, **options)
        return loss, softmax_cross_entropy.backward(saved, jnp.ones_like(loss))

    return run(*args)


@pytest.mark.peers
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignored", [None, 2])
@pytest.mark.usefixtures("x64")
def test_classes_are_weighed_smoothed_and_ignored_as_by_torch(
    reduction: str, ignored: int | None
) -> None:
    weight, e = np.array([0.5, 1.0, 3.0, 0.0, 2.0]), 0.2

    def peer(torch: Any, x: Any, labels: Any) -> Any:
        options = {} if ignored is None else {"ignore_index": ignored}
        options |= {"label_smoothing": e, "reduction": reduction}
        weights = torch.tensor(weight)
        return torch.nn.functional.cross_entropy(x, labels, weight=weights, **options)

    rule = smoothed(jnp.asarray(weight), jnp.asarray(e))
    args, options = [normal(0, 6, 5), jnp.asarray(LABELS, jnp.int64)], {"reduction": reduction}
    assert_agrees_with_torch(rule, peer, args, reduced=30, ignored=ignored, **options)


@pytest.mark.peers
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.usefixtures("x64")
def test_distributions_are_weighed_and_smoothed_as_by_torch(reduction: str) -> None:
    """The mean divides by the number of examples there, whatever the class weights."""
    weight, e = np.array([0.5, 1.0, 3.0, 0.0, 2.0]), 0.2

    def peer(torch: Any, x: Any, labels: Any) -> Any:
        options = {"label_smoothing": e, "reduction": reduction}
        weights = torch.tensor(weight)
        return torch.nn.functional.cross_entropy(x, labels, weight=weights, **options)

    rule = smoothed(jnp.asarray(weight), jnp.asarray(e))
    args = [normal(0, 6, 5), distributions()]
    assert_agrees_with_torch(rule, peer, args, reduced=30, reduction=reduction)


def smoothed(class_weights: jax.Array | None, e: jax.Array | None) -> Rule:
    """The rule (logits, labels) -> loss, with class weights and smoothing given."""
    fixed = (None, class_weights, e, None)

    def softmax_cross_entropy_reference(
        logits: jax.Array, labels: jax.Array, *, reduction: str = "mean", ignored: int | None = None
    ) -> jax.Array:
        options = {"reduction": reduction, "ignore_index": ignored}
        return softmax_cross_entropy.reference(logits, labels, *fixed, **options)

    def forward(
        logits: jax.Array, labels: jax.Array, *, reduction: str, ignored: int | None
    ) -> tuple:
        options = {"reduction": reduction, "ignore_index": ignored}
        return softmax_cross_entropy.forward(logits, labels, *fixed, **options)

    def backward(saved: Any, g: jax.Array) -> tuple:
        return softmax_cross_entropy.backward(saved, g)[:2]

    return Rule(softmax_cross_entropy_reference, forward, backward)


@pytest.mark.usefixtures("x64")
def test_smoothing_is_that_of_optax() -> None:
    def peer(x: jax.Array, labels: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy(x, optax.smooth_labels(labels, 0.3)).mean()

    x, rule = normal(0, 6, 5), smoothed(None, jnp.asarray(0.3))
    assert_agrees_with_jax(rule, peer, [x, distributions()], reduced=30)
    hot = jax.nn.one_hot(LABELS, 5)
    assert_agrees_with_jax(rule, lambda x, labels: peer(x, hot), [x, LABELS], reduced=30)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_weights_that_are_integers_repeat_their_examples() -> None:
    """Mean and sum; every option counts an example as often as its weight says."""
    x, cw, e, z = normal(0, 6, 5), jnp.exp(normal(2, 5)), jnp.asarray(0.1), jnp.asarray(0.01)
    times = jnp.array([1, 0, 3, 2, 0, 1])
    rows = jnp.repeat(jnp.arange(6), times)
    for reduction in ("mean", "sum"):
        weighted, (dx, _, _, dcw, de, dz) = both(
            x, LABELS, times.astype(x.dtype), cw, e, z, reduction=reduction
        )
        repeated, (dx_rows, _, _, *others) = both(
            x[rows], LABELS[rows], None, cw, e, z, reduction=reduction
        )
        assert_near(weighted, repeated, reduced=30)
        assert_near(dx, jnp.zeros_like(x).at[rows].add(dx_rows), reduced=30)
        assert_near([dcw, de, dz], others, reduced=30)


def test_the_z_loss_is_the_mean_of_the_squared_logsumexp() -> None:
    x, z = normal(0, 6, 5), jnp.float32(0.5)
    added = both(x, LABELS, None, None, None, z)[0] - both(x, LABELS)[0]
    lse = np.log(np.sum(np.exp(np.asarray(x, np.float64)), axis=-1))
    assert_near(1 + added, 1 + 0.5 * np.mean(lse**2), reduced=6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_an_ignored_example_is_one_that_is_not_there(reduction: str) -> None:
    x, w, e, z = normal(0, 6, 5), jnp.arange(1.0, 7.0), jnp.float32(0.1), jnp.float32(0.01)
    there = jnp.array([0, 1, 3, 5])
    labels = jnp.full(6, -100).at[there].set(LABELS[there])
    ignoring = {"ignore_index": -100, "reduction": reduction}
    loss, (dx, _, dw, *others) = both(x, labels, w, None, e, z, **ignoring)
    loss_there, (dx_there, _, dw_there, *others_there) = both(
        x[there], labels[there], w[there], None, e, z, reduction=reduction
    )
    assert_near(loss, loss_there, reduced=30)
    assert_near(dx, jnp.zeros_like(x).at[there].set(dx_there), reduced=30)
    assert_near(dw, jnp.zeros(6).at[there].set(dw_there), reduced=30)
    assert_near(others, others_there, reduced=30)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("way", ["ignored", "weights of 0"])
def test_nothing_that_counts_gives_0_and_gradients_of_0(reduction: str, way: str) -> None:
    x, w, cw = normal(0, 6, 5), jnp.ones(6), jnp.ones(5)
    e, z = jnp.float32(0.1), jnp.float32(0.01)
    labels, ignored = (jnp.full(6, -1), -1) if way == "ignored" else (LABELS, None)
    w = w if way == "ignored" else 0 * w
    options = {"reduction": reduction, "ignore_index": ignored}
    loss, (dx, _, dw, *others) = both(x, labels, w, cw, e, z, **options)
    assert not np.any(loss)
    assert not any(np.any(d) for d in [dx, *others])
    assert np.all(np.isfinite(dw))


@pytest.mark.slow
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("label", [-1, 7])
def test_what_is_not_finite_in_an_ignored_example_harms_nothing(bad: float, label: int) -> None:
    x, labels = normal(0, 6, 5), jnp.asarray(LABELS).at[2].set(label)
    w, e, z = jnp.ones(6), jnp.float32(0.1), jnp.float32(0.01)
    ignoring = {"ignore_index": label}
    expected = both(x, labels, w, None, e, z, **ignoring)
    got = both(x.at[2].set(bad), labels, w, None, e, z, **ignoring)
    assert_near(got, expected)


def test_a_masked_class_is_harmless_while_the_smoothing_is_0() -> None:
    """And costs infinity as soon as smoothing gives it weight."""
    x = normal(0, 6, 5).at[:, 4].set(-jnp.inf)
    labels = jnp.array([0, 1, 2, 3, 0, 1])
    plain, (dx, *_) = both(x, labels)
    loss, (dx_smoothed, *_) = both(x, labels, None, None, jnp.float32(0.0))
    assert_near([loss, dx_smoothed], [plain, dx])
    assert np.isinf(both(x, labels, None, None, jnp.float32(0.1))[0])


@pytest.mark.slow
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_it_saves_two_numbers_per_example_whatever_is_given(reduction: str) -> None:
    x, w, cw = normal(0, 6, 50), jnp.ones(6), jnp.ones(50)
    e, z = jnp.float32(0.1), jnp.float32(0.01)
    rule = softmax_cross_entropy.bind(reduction=reduction)
    labels = jnp.asarray(LABELS)
    for args in [(x, labels), (x, labels, w), (x, labels, w, cw, e, z)]:
        held = kept(rule, args).bytes
        assert held == 2 * 4 * 6
        assert held < kept(rule.reference, args).bytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nothing_as_large_as_the_logits_is_made_beside_their_gradient(dtype: str) -> None:
    n, classes = 4096, 8192
    logits = jax.ShapeDtypeStruct((n, classes), dtype)
    labels = jax.ShapeDtypeStruct((n,), jnp.int32)
    scalars = [jax.ShapeDtypeStruct((), jnp.float32)] * 2

    def loss(logits: jax.Array, labels: jax.Array, e: jax.Array, z: jax.Array) -> jax.Array:
        return softmax_cross_entropy(logits, labels, None, None, e, z, ignore_index=-1)

    for function, args in [(softmax_cross_entropy, ()), (loss, scalars)]:
        compiled = jax.jit(jax.value_and_grad(function)).lower(logits, labels, *args).compile()
        temp = compiled.memory_analysis().temp_size_in_bytes
        assert temp < n * classes // 64


@pytest.mark.slow
def test_bfloat16_is_no_worse_than_automatic_differentiation_of_plain_code() -> None:
    e, z = jnp.bfloat16(0.1), jnp.bfloat16(0.01)

    def plain(x: jax.Array, p: jax.Array, w: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(x)
        lse = jax.nn.logsumexp(x, axis=-1)
        each = z * lse**2 - jnp.sum(((1 - e) * p + e / 50) * log_p, axis=-1)
        return jnp.sum(w * each) / jnp.sum(w)

    def draw(seed: int) -> tuple:
        x, logit = 3 * jnp.asarray(np.random.default_rng(seed).normal(size=(2, 16, 50)))
        w = jax.random.uniform(jax.random.key(seed + 100), (16,))
        return tuple(a.astype(jnp.bfloat16) for a in (x, jax.nn.softmax(logit), w))

    def softmax_cross_entropy_reference(x: jax.Array, p: jax.Array, w: jax.Array) -> jax.Array:
        return softmax_cross_entropy.reference(x, p, w, None, e, z)

    def forward(x: jax.Array, p: jax.Array, w: jax.Array) -> tuple:
        return softmax_cross_entropy.forward(x, p, w, None, e, z)

    def backward(saved: Any, g: jax.Array) -> tuple:
        return softmax_cross_entropy.backward(saved, g)[:3]

    rule = Rule(softmax_cross_entropy_reference, forward, backward)
    assert_no_worse(rule, plain, draw)


@pytest.mark.slow
def test_a_vocabulary_of_131072_in_bfloat16() -> None:
    """Sums over that many terms keep float32's digits; in bfloat16 they would stop at 256."""
    n, classes = 8, 131072
    x = (3 * jnp.asarray(np.random.default_rng(0).normal(size=(n, classes)))).astype(jnp.bfloat16)
    labels = jax.random.randint(jax.random.key(1), (n,), 0, classes)
    e, z = jnp.float32(0.1), jnp.float32(1e-4)
    loss, (dx, *_) = both(x, labels, None, None, e, z)
    with jax.enable_x64(True):
        wide = x.astype(jnp.float64)
        args = (labels, None, None, e.astype(jnp.float64), z.astype(jnp.float64))
        truth, dx_true = jax.jit(jax.value_and_grad(softmax_cross_entropy.reference))(wide, *args)
    assert_near(loss, truth, reduced=classes)
    assert_near(dx, dx_true)


def test_the_smoothing_and_the_z_loss_may_be_annealed_without_compiling_again() -> None:
    traced = []

    @jax.jit
    def loss(e: jax.Array, z: jax.Array) -> jax.Array:
        traced.append(e)
        return softmax_cross_entropy(normal(0, 6, 5), LABELS, None, None, e, z)

    first, second = loss(0.1, 0.0), loss(0.2, 0.01)
    assert len(traced) == 1
    assert first != second


SHAPES = {
    "weights": ((6,), (5,)),
    "class_weights": ((5,), (6,)),
    "label_smoothing": ((), (1,)),
    "z_loss": ((), (6,)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_optional_arguments_of_another_shape_are_refused(name: str) -> None:
    shape, got = SHAPES[name]
    message = (
        f"softmax_cross_entropy: {name} must have the shape {shape}, got {got}. Nothing is "
        "broadcast: add, drop or repeat an axis, or leave it None."
    )
    given = {other: jnp.ones(got) if other == name else None for other in SHAPES}
    args = (normal(0, 6, 5), LABELS, *given.values())
    assert_refuses(softmax_cross_entropy, args, ValueError, message)


@pytest.mark.parametrize("name", SHAPES)
def test_optional_arguments_that_are_not_floating_are_refused(name: str) -> None:
    shape, _ = SHAPES[name]
    given = {other: jnp.ones(shape, jnp.int32) if other == name else None for other in SHAPES}
    args = (normal(0, 6, 5), LABELS, *given.values())
    message = not_floating("softmax_cross_entropy", name, "int32")
    assert_refuses(softmax_cross_entropy, args, TypeError, message)


def test_distributions_have_no_ignored_label() -> None:
    message = (
        "softmax_cross_entropy: ignore_index must be None where labels are distributions, got -1. "
        "Give those examples a weight of 0 in weights."
    )
    args = (normal(0, 6, 5), distributions())
    assert_refuses(softmax_cross_entropy, args, ValueError, message, ignore_index=-1)
