"""LSTM and GRU language models: gradients by hand, dropout, initial weights, peers, errors."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop
from jaxprop.checking.compiling import quickly
from jaxprop.models.inputs import IGNORED, Inputs
from jaxprop.models.language import LanguageModel
from jaxprop.models.recurrent import RecurrentConfig, recurrent
from tests.models.test_transformer import (
    LABELS,
    REDUCED,
    SEGMENTS,
    TOKENS,
    VOCABULARY,
    inputs,
    parameters,
    slow,
)
from tests.tolerances import assert_near

pytestmark = pytest.mark.usefixtures("x64")

WIDTH = 4


def tiny_lstm(**options: Any) -> LanguageModel:
    return recurrent(RecurrentConfig(VOCABULARY, **{"width": WIDTH, "depth": 2, **options}))


def tiny_gru(**options: Any) -> LanguageModel:
    return tiny_lstm(cell="gru", **options)


RECURRENT: dict[str, Callable[..., LanguageModel]] = {"lstm": tiny_lstm, "gru": tiny_gru}
each_cell = pytest.mark.parametrize("make", RECURRENT.values(), ids=RECURRENT)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (tiny_lstm, {}),
        slow(tiny_gru, {}),
        slow(tiny_lstm, {"tied": True, "save": 1}),
        slow(tiny_gru, {"tied": True, "save": 2}),
    ],
)
def test_loss_and_gradients_are_those_of_the_reference(make: Callable, options: dict) -> None:
    """With dropout, and labels that are ignored."""
    model = make(**options)
    x, key = inputs(dropout=0.3), jax.random.key(5)
    labels, params = jnp.asarray(LABELS), parameters(model)

    @quickly
    def run(params: Any) -> tuple:
        by_hand = jaxprop.value_and_grad(model.cost)(params, x, labels, key)
        return by_hand, jax.value_and_grad(model.cost.reference)(params, x, labels, key)

    got, truth = run(params)
    assert_near(got, truth, reduced=REDUCED)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(got[1]))


@pytest.mark.slow
@each_cell
def test_the_gradient_reaches_the_first_token_from_the_last(make: Callable) -> None:
    """Only the last label counts; the row of a token that comes first alone has a gradient."""
    model = make()
    tokens = jnp.asarray([[6, 1, 2, 3, 4, 5]])
    labels = jnp.full((1, 6), IGNORED).at[0, -1].set(0)
    params = parameters(model)
    _, dparams = quickly(jaxprop.value_and_grad(model.cost))(params, Inputs(tokens), labels)
    assert np.all(dparams["embedding"][6] != 0)
    assert not np.any(dparams["embedding"][0])


@pytest.mark.slow
@each_cell
def test_a_token_does_not_see_those_after_it(make: Callable) -> None:
    model = make()
    network, params = quickly(model.network.reference), parameters(model)
    changed = TOKENS.copy()
    changed[:, -1] = (changed[:, -1] + 1) % VOCABULARY
    before, after = network(params, inputs()), network(params, Inputs(jnp.asarray(changed)))
    assert_near(before[:, :-1], after[:, :-1])
    assert not np.allclose(before[:, -1], after[:, -1])


@pytest.mark.slow
@each_cell
def test_dropout_counts_where_a_key_is_given_alone(make: Callable) -> None:
    model = make()
    network, params = quickly(model.network.reference), parameters(model)
    without, rated = network(params, inputs()), network(params, inputs(dropout=0.5))
    assert_near(rated, without)
    dropped = network(params, inputs(dropout=0.5), jax.random.key(0))
    assert not np.allclose(dropped, without)


@pytest.mark.slow
@each_cell
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
def test_weights_along_time_start_orthogonal_and_the_forget_gate_open() -> None:
    blocks = tiny_lstm().init(jax.random.key(0), jnp.float64)["blocks"]
    gates = blocks["w_h"].reshape(2, WIDTH, 4, WIDTH)
    assert_near(jnp.einsum("lign,ljgn->lgij", gates, gates), np.tile(np.eye(WIDTH), (2, 4, 1, 1)))
    assert blocks["b"].reshape(2, 4, WIDTH).sum((0, 2)).tolist() == [0, 2 * WIDTH, 0, 0]
    # Glorot's limit of a (4, 4) matrix: no gate's part is taken for a wider one.
    assert 0.7 * (6 / 8) ** 0.5 < np.abs(blocks["w_x"]).max() <= (6 / 8) ** 0.5


MAIN = ["algebra", "linearity", "purity", "residuals"]
MOST = ["contract", "numerics", "transforms", *MAIN]


@pytest.mark.slow
@each_cell
def test_the_checker_passes_at_its_main_checks(make: Callable) -> None:
    model = make()
    report = checked(model.network, model, MAIN)
    assert report.verdict == "PASS", str(report)


@pytest.mark.slow
def test_the_checker_passes_at_most_of_its_checks_on_the_cost() -> None:
    """Under jit, vmap, scan and remat too; meshes have tests of their own."""
    model = tiny_lstm(depth=1)
    report = checked(model.cost, model, MOST, jnp.asarray(LABELS, jnp.int32))
    assert report.verdict == "PASS", str(report)


def checked(rule: Any, model: LanguageModel, checks: list[str], *labels: jax.Array) -> Any:
    """The report of a network as it is trained: parameters of float32, tokens of 32 bits."""
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), parameters(model))
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.int32), inputs())
    with jax.numpy_dtype_promotion("standard"):
        return jaxprop.check(rule, params, narrow, *labels, checks=checks)


@pytest.mark.slow
@pytest.mark.peers
@each_cell
def test_logits_loss_and_gradients_are_those_of_pytorch(make: Callable) -> None:
    """Of nn.Embedding, nn.LSTM or nn.GRU, and a linear layer without bias, in float64."""
    torch = pytest.importorskip("torch")
    model = make()
    params, labels = parameters(model), jnp.asarray(LABELS)

    @quickly
    def by_hand(params: Any) -> tuple:
        gradient = jaxprop.value_and_grad(model.cost)
        return model.network.forward(params, inputs())[0], gradient(params, inputs(), labels)

    tensors = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf), requires_grad=True), params)
    logits = _of_torch(torch, make, tensors)
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(LABELS).flatten(), ignore_index=IGNORED
    )
    loss.backward()
    dtensors = jax.tree.map(lambda leaf: leaf.grad.numpy(), tensors)
    truth = logits.detach().numpy(), (loss.item(), dtensors)
    assert_near(by_hand(params), truth, reduced=REDUCED)


def _of_torch(torch: Any, make: Callable, params: Any) -> Any:
    """The logits, with the layers' parameters under PyTorch's names, transposed.

    One of its two biases is 0, but for GRU's b_hn, which is b_n here: r multiplies it.
    """
    kind = torch.nn.LSTM if make is tiny_lstm else torch.nn.GRU
    stack = kind(WIDTH, WIDTH, num_layers=2, batch_first=True, dtype=torch.float64)
    blocks, named = params["blocks"], {}
    for k in range(2):
        b = blocks["b"][k]
        b_h = torch.zeros_like(b)
        if "b_n" in blocks:
            b_h = torch.cat([b_h[: 2 * WIDTH], blocks["b_n"][k]])
        parts = {"weight_ih": blocks["w_x"][k].T, "weight_hh": blocks["w_h"][k].T}
        parts |= {"bias_ih": b, "bias_hh": b_h}
        named |= {f"{name}_l{k}": part for name, part in parts.items()}
    h = torch.nn.functional.embedding(torch.tensor(TOKENS), params["embedding"])
    h, _ = torch.func.functional_call(stack, named, (h,))
    return h @ params["head"]


def test_packed_documents_are_refused() -> None:
    model = tiny_lstm()
    with pytest.raises(ValueError, match="must be one document") as refused:
        model.network(parameters(model), inputs(segments=SEGMENTS))
    assert str(refused.value) == (
        "recurrent: a sequence must be one document, got segments, and its states go through all "
        "of it. Give each document a row of its own, and the label -1 to what pads it."
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": "rnn"}, "RecurrentConfig: cell must be one of lstm, gru, got 'rnn'."),
        ({"width": 0}, "RecurrentConfig: width must be a positive whole number, got 0."),
    ],
)
def test_a_shape_that_cannot_be_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match="RecurrentConfig") as refused:
        tiny_lstm(**change)
    assert str(refused.value) == message
