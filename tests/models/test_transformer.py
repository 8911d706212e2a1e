"""GPT-2 and Llama: gradients by hand, packed documents, dropout, precision, errors."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop
from jaxprop.checking.compiling import quickly
from jaxprop.models.gpt2 import Gpt2Config, gpt2
from jaxprop.models.inputs import IGNORED, Inputs
from jaxprop.models.language import LanguageModel
from jaxprop.models.llama import LlamaConfig, llama
from tests.tolerances import assert_near

pytestmark = pytest.mark.usefixtures("x64")

VOCABULARY, BATCH, TIME = 7, 2, 6
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (BATCH, TIME))
LABELS = np.where(np.arange(TIME) == 2, IGNORED, np.roll(TOKENS, -1, axis=1))
SEGMENTS = np.array([[0, 0, 0, 1, 1, 1], [4, 4, 2, 2, 2, 2]])
# Sums over depth, width and tokens, one inside the other.
REDUCED = 512


def tiny_gpt2(**options: Any) -> LanguageModel:
    return gpt2(Gpt2Config(VOCABULARY, width=4, depth=2, heads=2, context=8, **options))


def tiny_llama(**options: Any) -> LanguageModel:
    shape = {"width": 4, "depth": 2, "heads": 2, "key_heads": 1, "hidden": 6}
    return llama(LlamaConfig(VOCABULARY, **shape, **options))


MODELS: dict[str, Callable[..., LanguageModel]] = {"gpt2": tiny_gpt2, "llama": tiny_llama}
each_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def parameters(model: LanguageModel) -> Any:
    """Random ones, biases and norms too, of the shapes that init makes."""
    random = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * random.normal(size=leaf.shape)), shapes)


def inputs(**options: Any) -> Inputs:
    return Inputs(jnp.asarray(TOKENS), **{k: jnp.asarray(v) for k, v in options.items()})


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        slow(tiny_gpt2, {}),
        (tiny_llama, {"qkv_bias": True}),
        slow(tiny_gpt2, {"tied": False, "save": 1}),
        slow(tiny_llama, {"tied": True, "save": 2, "window": 2}),
    ],
)
def test_loss_and_gradients_are_those_of_the_reference(make: Callable, options: dict) -> None:
    """With segments, labels that are ignored and, in GPT-2, dropout."""
    model = make(**options)
    dropout = {"dropout": 0.3} if make is tiny_gpt2 else {}
    x, key = inputs(segments=SEGMENTS, **dropout), jax.random.key(5)
    labels, params = jnp.asarray(LABELS), parameters(model)

    @quickly
    def run(params: Any) -> tuple:
        by_hand = jaxprop.value_and_grad(model.cost)(params, x, labels, key)
        return by_hand, jax.value_and_grad(model.cost.reference)(params, x, labels, key)

    got, truth = run(params)
    assert_near(got, truth, reduced=REDUCED)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(got[1]))


@pytest.mark.slow
@each_model
def test_the_cost_is_the_cross_entropy_of_the_logits(make: Callable) -> None:
    model = make()
    params, x, labels = parameters(model), inputs(), jnp.asarray(LABELS)

    @quickly
    def run(params: Any) -> tuple:
        def by_logits(params: Any) -> jax.Array:
            logits = model.network(params, x)
            return jaxprop.softmax_cross_entropy(logits, labels, ignore_index=IGNORED)

        return jaxprop.value_and_grad(model.cost)(params, x, labels), jax.value_and_grad(by_logits)(
            params
        )

    got, truth = run(params)
    assert_near(got, truth, reduced=REDUCED)


@pytest.mark.slow
@each_model
def test_packed_documents_are_as_if_each_stood_alone(make: Callable) -> None:
    """Segments part attention, and positions start again."""
    model = make()
    params = parameters(model)
    network = quickly(model.network.reference)
    together = network(params, inputs(segments=SEGMENTS))
    for row, ends in ((0, (0, 3, 6)), (1, (0, 2, 6))):
        for start, end in pairwise(ends):
            alone = network(params, Inputs(jnp.asarray(TOKENS[row : row + 1, start:end])))
            assert_near(together[row : row + 1, start:end], alone, reduced=REDUCED)


@pytest.mark.slow
@each_model
def test_a_token_does_not_see_those_after_it(make: Callable) -> None:
    model = make()
    network, params = quickly(model.network.reference), parameters(model)
    changed = TOKENS.copy()
    changed[:, -1] = (changed[:, -1] + 1) % VOCABULARY
    before, after = network(params, inputs()), network(params, Inputs(jnp.asarray(changed)))
    assert_near(before[:, :-1], after[:, :-1])
    assert not np.allclose(before[:, -1], after[:, -1])


@pytest.mark.slow
def test_dropout_counts_where_a_key_is_given_alone() -> None:
    model = tiny_gpt2()
    network, params = quickly(model.network.reference), parameters(model)
    without, rated = network(params, inputs()), network(params, inputs(dropout=0.5))
    assert_near(rated, without)
    dropped = network(params, inputs(dropout=0.5), jax.random.key(0))
    assert not np.allclose(dropped, without)


def test_llama_refuses_a_dropout_rate() -> None:
    model = tiny_llama()
    with pytest.raises(ValueError, match="no dropout") as refused:
        model.network(parameters(model), inputs(dropout=0.5))
    assert str(refused.value) == (
        "llama: has no dropout, got a rate. Leave it out of the inputs, or use gpt2."
    )


@pytest.mark.slow
@each_model
def test_weights_that_are_added_to_h_start_smaller_by_depth(make: Callable) -> None:
    config = make().config
    kind = gpt2 if make is tiny_gpt2 else llama
    wide = kind(type(config)(**{**vars(config), "width": 64, "heads": 2, "depth": 8}))
    blocks = wide.init(jax.random.key(0))["blocks"]
    attention, feed_forward = blocks["attention"], blocks["feed_forward"]
    added = attention["w_o"], feed_forward["w_out" if make is tiny_gpt2 else "w_down"]
    other = attention["w_qkv" if make is tiny_gpt2 else "w_q"]
    # 8 blocks of 64 x 64 numbers: the deviation is known to about 1 in 250.
    assert np.std(other) == pytest.approx(0.02, rel=0.05)
    for w in added:
        assert np.std(w) == pytest.approx(0.02 / 4, rel=0.05)


@pytest.mark.slow
@each_model
def test_bfloat16_is_computed_in_and_parameters_keep_their_precision(make: Callable) -> None:
    model = make(dtype="bfloat16")
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), parameters(model))
    assert jax.eval_shape(model.hidden.reference, params, inputs()).dtype == jnp.bfloat16
    loss, dparams = quickly(jaxprop.value_and_grad(model.cost))(params, inputs(), LABELS)
    assert loss.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(dparams)} == {jnp.dtype("float32")}
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    truth = quickly(jax.value_and_grad(make().cost.reference))(wide, inputs(), LABELS)
    got = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (loss, dparams))
    assert_near(got, truth, reduced=REDUCED)


@pytest.mark.slow
def test_the_layers_inputs_alone_are_less_to_save() -> None:
    def saved(save: int | None) -> int:
        model = tiny_llama(save=save)
        params = parameters(model)
        known = {id(leaf) for leaf in jax.tree.leaves(params)}
        _, residuals = model.hidden.forward(params, inputs())
        kept = {id(leaf): leaf for leaf in jax.tree.leaves(residuals)}
        return sum(leaf.nbytes for key, leaf in kept.items() if key not in known)

    assert saved(1) < saved(None) / 4


@pytest.mark.parametrize("name", ["cost", "network", "hidden"])
@pytest.mark.slow
@each_model
def test_the_checker_passes(make: Callable, name: str) -> None:
    """All but what compiles every transformation of a whole network on meshes: that is by hand."""
    model = make()
    rule = getattr(model, name)
    labels = (jnp.asarray(LABELS),) if name == "cost" else ()
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), parameters(model))
    checks = ["algebra", "linearity", "purity", "residuals"]
    with jax.numpy_dtype_promotion("standard"):
        report = jaxprop.check(rule, params, inputs(), *labels, checks=checks)
    assert report.verdict == "PASS", str(report)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            Inputs(jnp.zeros(3, np.int32)),
            "language model: tokens must be integers (B, T), got int32 (3,). Add an axis for the "
            "batch to one sequence.",
        ),
        (
            Inputs(jnp.zeros((2, 3), int), segments=jnp.zeros((2, 4), int)),
            "language model: segments must have the shape of tokens, (2, 3), got (2, 4). Give a "
            "number for each token.",
        ),
        (
            Inputs(jnp.zeros((2, 9), int)),
            "language model: a sequence must be no longer than the positions that are learned, 8, "
            "got 9 tokens. Cut it, or make the model with a larger context.",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(x: Inputs, message: str) -> None:
    model = tiny_gpt2()
    with pytest.raises(ValueError, match="language model") as refused:
        model.network(parameters(model), x)
    assert str(refused.value) == message


def test_bare_tokens_are_refused() -> None:
    model = tiny_gpt2()
    with pytest.raises(TypeError, match="the inputs must be Inputs, got"):
        model.network(parameters(model), jnp.asarray(TOKENS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "LlamaConfig: heads must divide width, got 3 and 4."),
        ({"key_heads": 3}, "LlamaConfig: key_heads must divide heads, got 3 and 2."),
        ({"head_size": 3}, "LlamaConfig: the head size must be even"),
        ({"depth": 0}, "LlamaConfig: depth must be a positive whole number, got 0."),
    ],
)
def test_a_shape_that_cannot_be_is_refused(change: dict, message: str) -> None:
    shape = {"width": 4, "depth": 2, "heads": 2, "hidden": 6}
    with pytest.raises(ValueError, match=message):
        LlamaConfig(VOCABULARY, **{**shape, **change})
    if "heads" in change:
        with pytest.raises(ValueError, match="Gpt2Config: heads must divide width"):
            Gpt2Config(VOCABULARY, width=4, depth=2, heads=3, context=8)
