"""lstm, gru and rnn: their peers, lengths, blocks of any size, precision, errors."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxprop import Rule, gru, lstm, rnn
from jaxprop.checking.compiling import quickly
from jaxprop.rules.recurrence import blocks
from jaxprop.samples import normal, replaced
from tests.rules.low_precision import assert_no_worse
from tests.rules.oracle import ids
from tests.rules.peers import assert_agrees_with_torch
from tests.rules.refusing import assert_refuses, not_floating
from tests.tolerances import assert_near

GATES = {lstm: 4, gru: 3, rnn: 1}
STATES = {lstm: 2, gru: 1, rnn: 1}
RULES = list(GATES)
# What is the same for all three is shown of one by default.
ONE_BY_DEFAULT = [lstm, *(pytest.param(rule, marks=pytest.mark.slow) for rule in (gru, rnn))]
C, H = 2, 3


def arguments(rule: Rule, *batch: int, steps: int, dtype: Any = None) -> tuple:
    """x, the states, the weights and b."""
    k = GATES[rule] * H
    states = [normal(i, *batch, H) for i in range(STATES[rule])]
    x, weights = normal(5, *batch, steps, C), [normal(6, C, k), normal(7, H, k), normal(8, k)]
    return tuple(array.astype(dtype or array.dtype) for array in (x, *states, *weights))


def pulled_back(rule: Rule, args: tuple, **options: Any) -> tuple:
    """(outputs, cotangents), a cotangent of 1 / (1 + place) for each number of an output."""

    @quickly
    def run(args: tuple) -> tuple:
        y, saved = rule.forward(*args, **options)
        g = jax.tree.map(lambda y: 1 / (1 + jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape), y)
        return y, rule.backward(saved, g)

    return run(args)


def test_blocks_cover_every_step_once_and_are_as_even_as_can_be() -> None:
    for length in range(40):
        for block in (1, 2, 5, 32, 50):
            n, size, rest = blocks(3, length, block)
            assert n * size + rest == length
            assert 0 <= rest < max(size, 1)
            assert size <= block
    assert blocks(3, 33, 32) == (1, 17, 16)
    assert blocks(8, 512, None) == (8, 64, 0)
    assert blocks(1024, 64, None) == (8, 8, 0)
    assert blocks(1, 64, None) == (4, 16, 0)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ONE_BY_DEFAULT, ids=ids)
@pytest.mark.parametrize(
    "steps",
    [7, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (0, 1, 4, 12))],
)
@pytest.mark.usefixtures("x64")
def test_blocks_of_any_size_give_the_same(rule: Rule, steps: int) -> None:
    """One block, blocks that divide the steps, blocks that leave some over."""
    args = *arguments(rule, 2, steps=steps, dtype="float64"), jnp.array([5, steps])
    whole = pulled_back(rule, args)
    for block in (1, 4):
        assert_near(pulled_back(rule, args, block=block), whole, reduced=50)


@pytest.mark.parametrize("rule", ONE_BY_DEFAULT, ids=ids)
def test_past_its_length_an_example_is_frozen_gives_zeros_and_is_not_read(rule: Rule) -> None:
    """As if the sequence ended there; nan in the padding reaches nothing."""
    x, *others = arguments(rule, 1, steps=5)
    padded = replaced(x, np.s_[:, 3:], jnp.nan)
    (hs, last), (dx, *dothers) = pulled_back(rule, (padded, *others, jnp.array([3])), block=2)
    (short, last_of_short), (dx_short, *dshort) = pulled_back(rule, (x[:, :3], *others), block=2)
    assert_near((hs[:, :3], last), (short, last_of_short))
    assert not np.any(hs[:, 3:])
    assert not np.any(dx[:, 3:])
    assert_near(dx[:, :3], dx_short, reduced=50)
    assert_near(dothers, dshort, reduced=50)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_lengths_out_of_range_count_as_none_or_all_of_the_steps(rule: Rule) -> None:
    args = arguments(rule, 2, steps=4)
    (hs, last), _ = pulled_back(rule, (*args, jnp.array([-1, 9], jnp.int16)))
    (all_hs, all_last), _ = pulled_back(rule, args)
    assert not np.any(hs[0])
    assert_near(hs[1], all_hs[1])
    first = jax.tree.leaves(last)
    assert_near(first, [jnp.stack([s[0], a[1]]) for s, a in
                        zip(args[1:], jax.tree.leaves(all_last), strict=False)])  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_leading_axes_are_all_examples(rule: Rule) -> None:
    args, n = arguments(rule, 6, steps=3), 1 + STATES[rule]
    deep = tuple(a.reshape(2, 3, *a.shape[1:]) if i < n else a for i, a in enumerate(args))
    (hs, _), cotangents = pulled_back(rule, deep)
    (hs_true, _), truth = pulled_back(rule, args)
    assert_near(hs.reshape(hs_true.shape), hs_true)
    assert_near(cotangents[n:], truth[n:], reduced=50)
    assert_near(cotangents[0].reshape(truth[0].shape), truth[0], reduced=50)


# PyTorch's weights lie (gates * H, in) and it has two biases.


def of_torch(torch: Any, kind: str, x: Any, states: Any, w_x: Any, w_h: Any, b: Any, b_h: Any):
    module = getattr(torch.nn, kind)(C, H, batch_first=True, dtype=torch.float64)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    weights = dict(zip(names, (w_x.T, w_h.T, b, b_h), strict=True))
    return torch.func.functional_call(module, weights, (x, states))


@pytest.mark.slow
@pytest.mark.peers
@pytest.mark.usefixtures("x64")
def test_lstm_is_that_of_torch() -> None:
    args = arguments(lstm, 2, steps=5, dtype="float64")

    def peer(torch: Any, x: Any, h0: Any, c0: Any, w_x: Any, w_h: Any, b: Any) -> Any:
        hs, (h, c) = of_torch(torch, "LSTM", x, (h0[None], c0[None]), w_x, w_h, b, 0 * b)
        return torch.cat([hs, h[0][:, None], c[0][:, None]], 1)

    assert_agrees_with_torch(_in_one(lstm), peer, args, reduced=50)


@pytest.mark.slow
@pytest.mark.peers
@pytest.mark.usefixtures("x64")
def test_rnn_is_that_of_torch() -> None:
    def peer(torch: Any, x: Any, h0: Any, w_x: Any, w_h: Any, b: Any) -> Any:
        hs, h = of_torch(torch, "RNN", x, h0[None], w_x, w_h, b, 0 * b)
        return torch.cat([hs, h[0][:, None]], 1)

    assert_agrees_with_torch(
        _in_one(rnn), peer, arguments(rnn, 2, steps=5, dtype="float64"), reduced=50
    )


@pytest.mark.peers
@pytest.mark.usefixtures("x64")
def test_gru_is_that_of_torch_its_biases_added_but_for_the_one_that_is_reset() -> None:
    def peer(torch: Any, x: Any, h0: Any, w_x: Any, w_h: Any, b: Any, b_n: Any) -> Any:
        b_r_and_z = 0.25 * b[: 2 * H]
        b_x = torch.cat([0.75 * b[: 2 * H], b[2 * H :]])
        b_h = torch.cat([b_r_and_z, b_n])
        hs, h = of_torch(torch, "GRU", x, h0[None], w_x, w_h, b_x, b_h)
        return torch.cat([hs, h[0][:, None]], 1)

    args = *arguments(gru, 2, steps=5, dtype="float64"), normal(9, H).astype("float64")
    assert_agrees_with_torch(_in_one(gru, skip=1), peer, args, reduced=50)


def _in_one(rule: Rule, skip: int = 0) -> Rule:
    """The rule with its outputs as one array, without lengths; after b come other arguments."""
    names = [name for name in rule.argument_names if name != "lengths"]
    names = names if skip else names[: 4 + STATES[rule]]

    def joined(y: Any) -> jax.Array:
        hs, *last = jax.tree.leaves(y)
        return jnp.concatenate([hs, *(state[:, None] for state in last)], axis=1)

    def forward(*args: jax.Array) -> tuple:
        y, saved = rule.forward(**dict(zip(names, args, strict=True)), block=2)
        return joined(y), (saved, jax.tree.structure(y))

    def backward(res: tuple, g: jax.Array) -> tuple:
        saved, structure = res
        steps = g.shape[1] - STATES[rule]
        leaves = g[:, :steps], *(g[:, steps + i] for i in range(STATES[rule]))
        by_name = dict(
            zip(rule.argument_names, rule.backward(saved, structure.unflatten(leaves)), strict=True)
        )
        return tuple(by_name[name] for name in names)

    joined_rule: Any = SimpleNamespace(forward=forward, backward=backward)
    return joined_rule


def plain_lstm(x: Any, h0: Any, c0: Any, w_x: Any, w_h: Any, b: Any) -> jax.Array:
    """As people write it, all in the dtype of x."""

    def step(state: tuple, x: jax.Array) -> tuple:
        h, c = state
        i, f, u, o = jnp.split(x @ w_x + h @ w_h + b, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(u)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    return jnp.moveaxis(lax.scan(step, (h0, c0), jnp.moveaxis(x, 1, 0))[1], 0, 1)


def plain_gru(x: Any, h0: Any, w_x: Any, w_h: Any, b: Any) -> jax.Array:
    def step(h: jax.Array, x: jax.Array) -> tuple:
        (a_r, a_z, a_n), q = jnp.split(x @ w_x + b, 3, axis=-1), jnp.split(h @ w_h, 3, axis=-1)
        r, z = jax.nn.sigmoid(a_r + q[0]), jax.nn.sigmoid(a_z + q[1])
        h = (1 - z) * jnp.tanh(a_n + r * q[2]) + z * h
        return h, h

    return jnp.moveaxis(lax.scan(step, h0, jnp.moveaxis(x, 1, 0))[1], 0, 1)


def plain_rnn(x: Any, h0: Any, w_x: Any, w_h: Any, b: Any) -> jax.Array:
    def step(h: jax.Array, x: jax.Array) -> tuple:
        h = jnp.tanh(x @ w_x + h @ w_h + b)
        return h, h

    return jnp.moveaxis(lax.scan(step, h0, jnp.moveaxis(x, 1, 0))[1], 0, 1)


def lstm_hs(x: Any, h0: Any, c0: Any, w_x: Any, w_h: Any, b: Any) -> jax.Array:
    return lstm.reference(x, h0, c0, w_x, w_h, b)[0]


def gru_hs(x: Any, h0: Any, w_x: Any, w_h: Any, b: Any) -> jax.Array:
    return gru.reference(x, h0, w_x, w_h, b)[0]


def rnn_hs(x: Any, h0: Any, w_x: Any, w_h: Any, b: Any) -> jax.Array:
    return rnn.reference(x, h0, w_x, w_h, b)[0]


PLAIN: dict[Rule, Callable] = {lstm: plain_lstm, gru: plain_gru, rnn: plain_rnn}
HS: dict[Rule, Callable] = {lstm: lstm_hs, gru: gru_hs, rnn: rnn_hs}


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_bfloat16_is_no_worse_than_automatic_differentiation_of_plain_code(rule: Rule) -> None:
    k, batch, width, steps = GATES[rule] * 16, 4, 16, 32

    def draw(seed: int) -> tuple:
        x = normal(seed, batch, steps, width)
        states = [normal(seed + 100 + i, batch, 16) for i in range(STATES[rule])]
        w_x, w_h = normal(seed + 200, width, k) / 4, normal(seed + 300, 16, k) / 4
        arrays = x, *states, w_x, w_h, normal(seed + 400, k)
        return tuple(array.astype(jnp.bfloat16) for array in arrays)

    def forward(*args: jax.Array) -> tuple:
        (hs, _), saved = rule.forward(*args, block=8)
        return hs, saved

    def backward(saved: Any, g: jax.Array) -> tuple:
        return rule.backward(saved, (g, None))[: len(draw(0))]

    assert_no_worse(Rule(HS[rule], forward, backward), PLAIN[rule], draw)


@pytest.mark.slow
def test_weight_gradients_of_bfloat16_data_are_added_up_in_float32() -> None:
    """4096 steps that each add 2^-9: in bfloat16 the sum would stay at 1."""
    x, h0 = jnp.full((1, 4096, 1), 1.0, jnp.bfloat16), jnp.zeros((1, 1), jnp.bfloat16)
    zero = jnp.zeros((1, 1), jnp.float32)
    y, saved = rnn.forward(x, h0, zero, zero, jnp.zeros(1, jnp.float32), block=64)
    g = jnp.full_like(y[0], 2.0**-9), jnp.zeros_like(y[1])
    _, _, dw_x, _, db, _ = rnn.backward(saved, g)
    assert dw_x.dtype == db.dtype == jnp.float32
    assert_near((dw_x[0], db), (np.full(1, 8.0), np.full(1, 8.0)), reduced=4096)


def test_each_state_keeps_its_dtype_and_hs_has_that_of_x() -> None:
    x, h0, c0, *weights = arguments(lstm, 2, steps=3)
    args = x.astype(jnp.bfloat16), h0.astype(jnp.bfloat16), c0, *weights
    (hs, (h, c)), saved = jax.eval_shape(lstm.forward, *args)
    assert (hs.dtype, h.dtype, c.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    cotangents = jax.eval_shape(lstm.backward, saved, (hs, (h, c)))
    assert [d.dtype for d in cotangents[:6]] == [arg.dtype for arg in args]
    assert cotangents[6] is None


def test_no_gates_are_saved() -> None:
    """Of lstm c before each block, of the others nothing beside arguments and hs."""
    for rule in RULES:
        args = arguments(rule, 2, steps=12)
        _, saved = jax.eval_shape(lambda *a, rule=rule: rule.forward(*a, block=4), *args)
        sizes = sorted(leaf.size for leaf in jax.tree.leaves(saved))
        arrays = [arg.size for arg in args] + [2 * 12 * H]
        kept = [3 * 2 * H] if rule is lstm else []
        assert sizes == sorted(arrays + kept)


@pytest.mark.parametrize("rule", RULES, ids=ids)
@pytest.mark.parametrize("name", ["x", "h0", "w_x", "w_h", "b"])
def test_integers_are_refused(rule: Rule, name: str) -> None:
    args = dict(zip(rule.argument_names, arguments(rule, 2, steps=3), strict=False))
    args[name] = args[name].astype(jnp.int32)
    message = not_floating(rule.name, name, "int32")
    assert_refuses(rule, tuple(args.values()), TypeError, message)


@pytest.mark.parametrize("rule", RULES, ids=ids)
@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("h0", (3, H), (2, H)),
        ("h0", (2, H + 1), (2, H)),
        ("h0", (H,), (2, H)),
        ("w_x", (C + 1, 1), None),
        ("b", (1,), None),
    ],
)
def test_an_argument_of_another_shape_is_refused(
    rule: Rule, name: str, shape: tuple, expected: tuple | None
) -> None:
    args = dict(zip(rule.argument_names, arguments(rule, 2, steps=3), strict=False))
    k = GATES[rule] * H
    expected = expected or {"w_x": (C, k), "b": (k,)}[name]
    args[name] = jnp.ones(shape)
    message = (
        f"{rule.name}: {name} must be {expected} where x is (2, 3, {C}) and w_h ({H}, {k}), got "
        f"{shape}. Add, drop, transpose or repeat an axis."
    )
    assert_refuses(rule, tuple(args.values()), ValueError, message)


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_weights_the_wrong_way_round_are_refused(rule: Rule) -> None:
    args = dict(zip(rule.argument_names, arguments(rule, 2, steps=3), strict=False))
    gates, k = GATES[rule], GATES[rule] * H
    args["w_h"] = jnp.ones((k + 1, H))
    message = (
        f"{rule.name}: x must be (..., T, C) and w_h (H, {gates} * H), got x (2, 3, {C}) and w_h "
        f"({k + 1}, {H}). Weights are stored (in, out): transpose a ({gates} * H, H) matrix."
    )
    assert_refuses(rule, tuple(args.values()), ValueError, message)


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_lengths_that_are_not_one_integer_for_each_example_are_refused(rule: Rule) -> None:
    args = arguments(rule, 2, steps=3)
    message = (
        f"{rule.name}: lengths must be integers, got float32. Convert them with "
        "lengths.astype(jnp.int32); they count steps."
    )
    assert_refuses(rule, (*args, jnp.ones(2)), TypeError, message)
    message = (
        f"{rule.name}: lengths must be (2,), one for each example, got (3,). Add, drop or repeat "
        "an axis."
    )
    assert_refuses(rule, (*args, jnp.ones(3, jnp.int32)), ValueError, message)


@pytest.mark.parametrize("block", [0, -1, 2.0, True])
def test_a_block_that_is_no_positive_integer_is_refused(block: Any) -> None:
    message = (
        "lstm: block must be a positive integer, the steps whose gates are held at once, or None, "
        f"got {block!r}."
    )
    assert_refuses(lstm, arguments(lstm, 2, steps=3), ValueError, message, block=block)


def test_a_b_n_of_another_shape_is_refused() -> None:
    message = (
        f"gru: b_n must be (H,) = ({H},), the bias of n beside h, got ({3 * H},). Add the biases "
        "of r and z beside h to b."
    )
    args = *arguments(gru, 2, steps=3), None, jnp.ones(3 * H)
    assert_refuses(gru, args, ValueError, message)
