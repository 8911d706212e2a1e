"""The cost J of a network in the readings of seed claim N9, against `jax.grad` of plain JAX."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop
from jaxprop import Rule
from jaxprop.checking.compiling import quickly
from tests.tolerances import assert_near

pytestmark = pytest.mark.usefixtures("x64")

READINGS = ("separate", "folded")
LAMBDA, ALPHA, RATIO = 0.3, 0.2, 0.7


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


NETWORK = jaxprop.chain(
    hidden_1=jaxprop.dense(4, jaxprop.tanh),
    hidden_2=jaxprop.dense(3, jaxprop.sigmoid),
    output=jaxprop.dense(2),
)


def batch() -> tuple[Any, jax.Array, jax.Array]:
    widths = {"hidden_1": (5, 4), "hidden_2": (4, 3), "output": (3, 2)}
    params = {
        name: {"w": normal(seed, *shape), "b": normal(seed + 10, shape[1])}
        for seed, (name, shape) in enumerate(widths.items())
    }
    return params, normal(20, 6, 5), normal(21, 6, 2)


def plain_activations(params: Any, x: jax.Array) -> dict[str, jax.Array]:
    """Every h_k, spelled out."""
    h_1 = jnp.tanh(x @ params["hidden_1"]["w"] + params["hidden_1"]["b"])
    h_2 = jax.nn.sigmoid(h_1 @ params["hidden_2"]["w"] + params["hidden_2"]["b"])
    y_hat = h_2 @ params["output"]["w"] + params["output"]["b"]
    return {"hidden_1": h_1, "hidden_2": h_2, "output": y_hat}


def half_squares(tree: Any) -> jax.Array:
    return sum(jnp.sum(leaf**2) / 2 for leaf in jax.tree.leaves(tree))


def absolutes(tree: Any) -> jax.Array:
    return sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(tree))


def weights(params: Any) -> Any:
    return {name: layer["w"] for name, layer in params.items()}


def mean_half_squares(hs: Any) -> jax.Array:
    return sum(jnp.sum(h**2) / 2 / h.shape[0] for h in hs.values())


def loss(hs: Any, y: jax.Array) -> jax.Array:
    return jnp.mean((hs["output"] - y) ** 2)


# By name: (penalty, activity), a strength, and J in plain JAX of the activations, the parameters
# and that strength.
COSTS: dict[str, tuple[dict[str, Rule], Any, Callable]] = {
    "no penalty": ({}, None, lambda hs, params, s: 0.0),
    "l2": (
        {"penalty": jaxprop.l2},
        LAMBDA,
        lambda hs, params, s: s * half_squares(params),
    ),
    "l2 of weights": (
        {"penalty": jaxprop.l2.bind(leaves="*/w")},
        LAMBDA,
        lambda hs, params, s: s * half_squares(weights(params)),
    ),
    "l1": (
        {"penalty": jaxprop.l1},
        {"penalty": LAMBDA},
        lambda hs, params, s: s["penalty"] * absolutes(params),
    ),
    "elastic net, half and half": (
        {"penalty": jaxprop.elastic_net},
        LAMBDA,
        lambda hs, params, s: s * (absolutes(params) + half_squares(params)) / 2,
    ),
    "elastic net with a ratio": (
        {"penalty": jaxprop.elastic_net.bind(leaves="*/w")},
        {"penalty": LAMBDA, "l1_ratio": RATIO},
        lambda hs, params, s: (
            s["penalty"]
            * (
                s["l1_ratio"] * absolutes(weights(params))
                + (1 - s["l1_ratio"]) * half_squares(weights(params))
            )
        ),
    ),
    "activity": (
        {"activity": jaxprop.activity_l2},
        ALPHA,
        lambda hs, params, s: s * mean_half_squares(hs),
    ),
    "activity of one layer": (
        {"activity": jaxprop.activity_l2.bind(layers="hidden_2")},
        {"activity": ALPHA},
        lambda hs, params, s: s["activity"] * mean_half_squares({"h": hs["hidden_2"]}),
    ),
    "activity of the output": (
        {"activity": jaxprop.activity_l1.bind(layers="output")},
        ALPHA,
        lambda hs, params, s: s * absolutes(hs["output"]) / hs["output"].shape[0],
    ),
    "both, one strength": (
        {"penalty": jaxprop.l2, "activity": jaxprop.activity_l2},
        LAMBDA,
        lambda hs, params, s: s * (half_squares(params) + mean_half_squares(hs)),
    ),
    "both, two strengths": (
        {"penalty": jaxprop.l2, "activity": jaxprop.activity_l2},
        {"penalty": LAMBDA, "activity": ALPHA},
        lambda hs, params, s: (
            s["penalty"] * half_squares(params) + s["activity"] * mean_half_squares(hs)
        ),
    ),
    "both share a ratio": (
        {"penalty": jaxprop.elastic_net, "activity": jaxprop.elastic_net},
        {"penalty": LAMBDA, "activity": ALPHA, "l1_ratio": RATIO},
        lambda hs, params, s: (
            s["penalty"]
            * (s["l1_ratio"] * absolutes(params) + (1 - s["l1_ratio"]) * half_squares(params))
            + s["activity"]
            * (s["l1_ratio"] * absolutes(hs) + (1 - s["l1_ratio"]) * half_squares(hs))
        ),
    ),
}


# The readings differ where there is a penalty on parameters. The default run has one of each kind.
DEFAULT = {"no penalty", "l2 of weights", "activity of one layer", "both share a ratio"}
READ = [
    pytest.param(name, reading, marks=() if name in DEFAULT else pytest.mark.slow)
    for name, (penalties, *_) in COSTS.items()
    for reading in (READINGS if "penalty" in penalties else READINGS[:1])
]


def as_arrays(strength: Any) -> Any:
    return jax.tree.map(jnp.asarray, strength)


def make(name: str, reading: str) -> jaxprop.Cost:
    return jaxprop.cost(NETWORK, jaxprop.mean_squared_error, **COSTS[name][0], reading=reading)


def plain(name: str) -> Callable:
    """J(params, x, y, strength) in plain JAX."""
    penalties = COSTS[name][2]

    def J(params: Any, x: jax.Array, y: jax.Array, strength: Any) -> jax.Array:
        hs = plain_activations(params, x)
        return loss(hs, y) + penalties(hs, params, strength)

    return J


@pytest.mark.parametrize(("name", "reading"), READ)
def test_J_its_cotangents_and_value_and_grad_are_those_of_plain_jax(
    name: str, reading: str
) -> None:
    """The cotangents of the parameters, x, y and the strength, for a g of 2."""
    J, args = make(name, reading), (*batch(), as_arrays(COSTS[name][1]))

    @quickly
    def run(*args: Any) -> tuple:
        value, saved = J.forward(*args)
        by_hand = value, J.backward(saved, jnp.asarray(2.0))
        pairs = jaxprop.value_and_grad(J)(*args), jax.value_and_grad(J)(*args)
        truth = jax.value_and_grad(plain(name), (0, 1, 2, 3))(*args)
        return by_hand, J.reference(*args), pairs, truth

    (value, (*cotangents, dkey)), reference, (ours, through_jax), (J_true, grads) = run(*args)
    assert_near((value, reference), (J_true, J_true), reduced=100)
    assert_near(tuple(cotangents), jax.tree.map(lambda d: 2 * d, grads), reduced=100)
    assert dkey is None
    assert_near(ours, (J_true, grads[0]), reduced=100)
    assert_near(through_jax, (J_true, grads[0]), reduced=100)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["number", "array", "NumPy", "dict of numbers", "dict of arrays"])
def test_a_strength_may_be_a_number_an_array_or_a_dict(form: str) -> None:
    args = batch()
    J = make("l2", "folded")
    strength = {
        "number": LAMBDA,
        "array": jnp.asarray(LAMBDA),
        "NumPy": np.float64(LAMBDA),
        "dict of numbers": {"penalty": LAMBDA},
        "dict of arrays": {"penalty": jnp.asarray(LAMBDA)},
    }[form]
    expected = quickly(jax.value_and_grad(plain("l2")))(*args, LAMBDA)
    assert_near(quickly(jaxprop.value_and_grad(J))(*args, strength), expected, reduced=100)


@pytest.mark.parametrize("reading", READINGS)
def test_the_cotangent_of_each_strength_is_its_omega(reading: str) -> None:
    params, x, y = batch()

    @quickly
    def plain_omegas(params: Any, x: jax.Array) -> dict:
        hs = plain_activations(params, x)
        return {"penalty": half_squares(params), "activity": mean_half_squares(hs)}

    omegas = plain_omegas(params, x)
    for name, strength, expected in [
        ("both, two strengths", {"penalty": LAMBDA, "activity": ALPHA}, omegas),
        ("both, one strength", LAMBDA, sum(omegas.values())),
        ("l2", jnp.asarray(LAMBDA), omegas["penalty"]),
    ]:
        J = make(name, reading)

        def dstrength(*args: Any, J: jaxprop.Cost = J) -> Any:
            _, saved = J.forward(*args)
            return J.backward(saved, jnp.ones(()))[3]

        assert_near(quickly(dstrength)(params, x, y, strength), expected, reduced=100)


@pytest.mark.slow
@pytest.mark.parametrize("reading", READINGS)
def test_a_sweep_of_the_strength_by_vmap_is_the_loop(reading: str) -> None:
    args = batch()
    J = make("both, two strengths", reading)
    grid = {"penalty": jnp.array([0.0, 0.1, 2.0]), "activity": jnp.array([0.5, 0.0, 0.1])}
    run = jaxprop.value_and_grad(J)
    swept = quickly(jax.vmap(run, (None, None, None, 0)))(*args, grid)
    for i in range(3):
        alone = quickly(run)(*args, jax.tree.map(lambda s, i=i: s[i], grid))
        assert_near(jax.tree.map(lambda leaf, i=i: leaf[i], swept), alone, reduced=100)


@pytest.mark.slow
@pytest.mark.parametrize("strengths", [(0.3, 0.2, 0.1), (1, 2, 3)])
def test_annealing_the_strength_compiles_once(strengths: tuple) -> None:
    args = batch()
    J = make("l2", "separate")
    traced = []

    @jax.jit
    def step(*args: Any) -> Any:
        traced.append(1)
        return jaxprop.value_and_grad(J)(*args)

    values = [float(step(*args, strength)[0]) for strength in strengths]
    assert len(traced) == 1
    assert step._cache_size() == 1
    assert_near(np.array(values), np.array([float(plain("l2")(*args, s)) for s in strengths]))


def test_a_strength_of_zero_is_no_penalty() -> None:
    args = batch()
    without = quickly(jaxprop.value_and_grad(make("no penalty", "separate")))(*args)
    for reading in READINGS:
        J = make("both, one strength", reading)
        with_zero = quickly(jaxprop.value_and_grad(J))(*args, 0.0)
        assert_near(with_zero, without)


def test_counting_the_regulariser_twice_is_off_by_lambda_dOmega() -> None:
    """The folded loss already returns lambda dOmega; a layer that adds it again is wrong."""
    params, x, y = batch()
    J = make("l2 of weights", "folded")
    _, once = quickly(jaxprop.value_and_grad(J))(params, x, y, LAMBDA)
    term = J.terms["penalty"]
    omega, saved = term.forward(params, jnp.asarray(LAMBDA))
    again, _ = term.backward(saved, jnp.ones_like(omega))
    truth = quickly(jax.grad(plain("l2 of weights")))(params, x, y, LAMBDA)
    assert_near(once, truth, reduced=100)
    for name, layer in params.items():
        excess = once[name]["w"] + again[name]["w"] - truth[name]["w"]
        assert_near(excess, LAMBDA * layer["w"], reduced=100)
        assert again[name]["b"] is None


def test_the_folded_loss_alone_holds_the_parameter_penalty() -> None:
    """Reading 2 is another backward than reading 1, not only another word for it."""
    params, x, y = batch()
    saved = {}
    for reading in READINGS:
        _, saved[reading] = make("both, two strengths", reading).forward(
            params, x, y, {"penalty": LAMBDA, "activity": ALPHA}
        )
    assert set(saved["separate"].residuals.terms) == {"penalty", "activity"}
    assert set(saved["folded"].residuals.terms) == {"activity"}


def test_value_and_grad_calls_no_automatic_differentiation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args = batch()
    J, strength = make("both, two strengths", "folded"), {"penalty": LAMBDA, "activity": ALPHA}
    expected = quickly(jax.value_and_grad(plain("both, two strengths")))(*args, strength)

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("automatic differentiation was called")

    for name in ("grad", "value_and_grad", "vjp", "jvp", "linearize", "jacrev", "jacfwd"):
        monkeypatch.setattr(jax, name, refuse)
    assert_near(quickly(jaxprop.value_and_grad(J))(*args, strength), expected, reduced=100)


def test_value_and_grad_runs_the_forwards_and_backwards_themselves() -> None:
    """No call of a custom_vjp is left in it for JAX to differentiate."""
    J = make("both, two strengths", "separate")
    args = (*batch(), {"penalty": LAMBDA, "activity": ALPHA})
    assert "custom_vjp" in str(jax.make_jaxpr(J)(*args))
    assert "custom_vjp" not in str(jax.make_jaxpr(jaxprop.value_and_grad(J))(*args))


def test_value_and_grad_gives_zeros_for_what_J_does_not_depend_on() -> None:
    def first_only(params: dict, x: jax.Array) -> jax.Array:
        return jnp.sum(params["used"] * x)

    J = Rule(
        first_only,
        lambda params, x: (first_only(params, x), (params["used"], x)),
        lambda res, g: ({"used": g * res[1], "unused": None}, g * res[0]),
    )
    params = {"used": normal(0, 3), "unused": {"a": normal(1, 2), "b": jnp.float32(1)}}
    _, dparams = jaxprop.value_and_grad(J)(params, normal(2, 3))
    assert_near(dparams["used"], normal(2, 3))
    assert_near(dparams["unused"], {"a": jnp.zeros(2), "b": jnp.float32(0)})
    assert dparams["unused"]["b"].dtype == jnp.float32


def test_value_and_grad_gives_zeros_where_J_depends_on_no_parameter() -> None:
    def constant(params: dict, x: jax.Array) -> jax.Array:
        return jnp.sum(x)

    J = Rule(constant, lambda params, x: (jnp.sum(x), x), lambda x, g: (None, g + 0 * x))
    value, dparams = jaxprop.value_and_grad(J)({"w": normal(0, 2, 3)}, normal(1, 4))
    assert_near(value, jnp.sum(normal(1, 4)))
    assert_near(dparams, {"w": jnp.zeros((2, 3))})


def test_labels_may_be_integers() -> None:
    params, x, _ = batch()
    labels = jnp.array([0, 1, 1, 0, 1, 0])
    J = jaxprop.cost(NETWORK, jaxprop.softmax_cross_entropy, jaxprop.l2)

    def plain_J(params: Any, x: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(plain_activations(params, x)["output"])
        return -jnp.mean(log_p[jnp.arange(6), labels]) + LAMBDA * half_squares(params)

    @quickly
    def run(params: Any, x: jax.Array) -> tuple:
        value, saved = J.forward(params, x, labels, LAMBDA)
        return value, J.backward(saved, jnp.ones(()))

    value, (dparams, dx, dlabels, _, _) = run(params, x)
    truth = quickly(jax.value_and_grad(plain_J, (0, 1)))(params, x)
    assert_near((value, (dparams, dx)), truth, reduced=100)
    assert dlabels is None


def test_a_network_that_is_no_chain_is_one_layer_of_its_cost() -> None:
    layer = jaxprop.dense(2, jaxprop.tanh)
    params, x, y = {"w": normal(0, 5, 2), "b": normal(1, 2)}, normal(2, 6, 5), normal(3, 6, 2)
    J = jaxprop.cost(
        layer, jaxprop.mean_squared_error, jaxprop.l2, jaxprop.activity_l2.bind(layers="dense")
    )

    def plain_J(params: Any) -> jax.Array:
        h = jnp.tanh(x @ params["w"] + params["b"])
        omega = half_squares(params) + mean_half_squares({"h": h})
        return jnp.mean((h - y) ** 2) + LAMBDA * omega

    truth = quickly(jax.value_and_grad(plain_J))(params)
    for function in (jaxprop.value_and_grad(J), jax.value_and_grad(J)):
        assert_near(quickly(function)(params, x, y, LAMBDA), truth, reduced=100)


def test_a_chain_within_the_network_is_one_layer_to_an_activity_penalty() -> None:
    """Its paths in params go on into it: block/hidden_1/w."""
    block = jaxprop.chain(hidden_1=NETWORK.layers["hidden_1"], hidden_2=NETWORK.layers["hidden_2"])
    nested = jaxprop.chain(block=block, output=NETWORK.layers["output"])
    flat, x, y = batch()
    params = {"block": {k: flat[k] for k in ("hidden_1", "hidden_2")}, "output": flat["output"]}
    J = jaxprop.cost(
        nested,
        jaxprop.mean_squared_error,
        jaxprop.l2.bind(leaves="block/*/w"),
        jaxprop.activity_l2.bind(layers="block"),
    )

    def plain_J(params: Any) -> jax.Array:
        hs = plain_activations({**params["block"], "output": params["output"]}, x)
        omega = half_squares(weights(params["block"])) + mean_half_squares({"h": hs["hidden_2"]})
        return loss(hs, y) + LAMBDA * omega

    got = quickly(jaxprop.value_and_grad(J))(params, x, y, LAMBDA)
    assert_near(got, quickly(jax.value_and_grad(plain_J))(params), reduced=100)


def test_the_key_reaches_the_network() -> None:
    def noise(params: Any, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return x if key is None else x + jax.random.normal(key, x.shape, x.dtype)

    layer = jaxprop.Layer(
        noise,
        lambda params, x, key: (noise(params, x, key), ()),
        lambda res, g: (None, g, None),
        init=lambda key, x_shape, dtype: {},
    )
    network = jaxprop.chain(noise=layer)
    J = jaxprop.cost(network, jaxprop.mean_squared_error)
    x, y, key = normal(0, 4, 2), normal(1, 4, 2), jax.random.key(7)
    truth = jnp.mean((network({"noise": {}}, x, key) - y) ** 2)
    assert_near(J({"noise": {}}, x, y, None, key), truth)
    assert_near(J.forward({"noise": {}}, x, y, None, key)[0], truth)
    assert_near(J({"noise": {}}, x, y), jnp.mean((x - y) ** 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "reading"),
    [
        ("bfloat16", "folded"),
        ("float64", "separate"),
        pytest.param("float16", "separate", marks=pytest.mark.slow),
        pytest.param("float32", "separate", marks=pytest.mark.slow),
    ],
)
def test_J_is_float32_at_least_and_gradients_have_their_parameters_dtypes(
    dtype: str, reading: str
) -> None:
    params, x, y = jax.tree.map(lambda leaf: leaf.astype(dtype), batch())
    J = make("both, two strengths", reading)
    strength = {"penalty": jnp.asarray(LAMBDA, dtype), "activity": jnp.float32(ALPHA)}

    @quickly
    def run(*args: Any) -> tuple:
        value, saved = J.forward(*args)
        return value, J.backward(saved, jnp.ones_like(value)), J.reference(*args)

    value, (dparams, dx, dy, dstrength, _), reference = run(params, x, y, strength)
    assert value.dtype == reference.dtype
    assert value.dtype == (jnp.float64 if dtype == "float64" else jnp.float32)
    assert {leaf.dtype.name for leaf in jax.tree.leaves((dparams, dx, dy))} == {dtype}
    assert dstrength["penalty"].dtype == dtype
    assert dstrength["activity"].dtype == jnp.float32
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (params, x, y, strength))
    truth = quickly(jax.value_and_grad(plain("both, two strengths")))(*exact)
    lowest = dtype if dtype in ("bfloat16", "float16") else "float32"
    assert_near((value, dparams), truth, lowest, reduced=100)


# Errors: the invariant, what came, the remedy.


def test_an_unknown_reading_is_refused() -> None:
    with pytest.raises(ValueError, match="reading") as refused:
        jaxprop.cost(NETWORK, jaxprop.mean_squared_error, jaxprop.l2, reading="both")
    assert str(refused.value) == (
        "cost: the reading must be one of ('separate', 'folded'), got 'both'."
    )


REFUSED_STRENGTHS: dict[str, tuple[str, Any, str]] = {
    "one without a penalty": (
        "no penalty",
        0.1,
        "cost: strength must be None where J has no penalty, got one. Make J with penalty=... or "
        "activity=..., or leave it out.",
    ),
    "none with a penalty": (
        "l2",
        None,
        "cost: J has a penalty (penalty), so it needs a strength, got None. Call J(params, x, y, "
        "strength), or make J without a penalty.",
    ),
    "none with two": (
        "both, two strengths",
        None,
        "cost: J has a penalty (penalty, activity), so it needs a strength, got None. Call "
        "J(params, x, y, strength), or make J without a penalty.",
    ),
    "a dict that lacks one": (
        "both, two strengths",
        {"penalty": 0.1},
        "cost: strength must have ['penalty', 'activity'], got ['penalty']. Give 'activity' a "
        "number.",
    ),
    "an empty dict": (
        "l2",
        {},
        "cost: strength must have ['penalty'], got []. Give 'penalty' a number.",
    ),
    "a dict with one too many": (
        "l2",
        {"activity": 0.1, "penalty": 0.1},
        "cost: strength may have ['penalty'], got ['activity', 'penalty']. Leave 'activity' out.",
    ),
    "a ratio for a penalty without one": (
        "both, two strengths",
        {"activity": 0.1, "l1_ratio": 0.1, "penalty": 0.1},
        "cost: strength may have ['penalty', 'activity'], got ['activity', 'l1_ratio', 'penalty']. "
        "Leave 'l1_ratio' out.",
    ),
}


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("which", REFUSED_STRENGTHS)
def test_a_strength_that_does_not_fit_the_penalties_is_refused(which: str, reading: str) -> None:
    name, strength, message = REFUSED_STRENGTHS[which]
    J, args = make(name, reading), batch()
    for function in (J, J.reference, J.forward, jaxprop.value_and_grad(J)):
        with pytest.raises(ValueError, match="cost: ") as refused:
            function(*args, strength)
        assert str(refused.value) == message


@pytest.mark.parametrize("reading", READINGS)
def test_a_loss_that_is_no_scalar_is_refused(reading: str) -> None:
    J = jaxprop.cost(
        NETWORK, jaxprop.mean_squared_error.bind(reduction="none"), jaxprop.l2, reading=reading
    )
    args = batch()
    for function in (J, J.reference, J.forward):
        with pytest.raises(ValueError, match="scalar") as refused:
            function(*args, LAMBDA)
        assert str(refused.value) == (
            "cost: mean_squared_error must return a scalar, got (6, 2). Fix its reduction, as in "
            "mean_squared_error.bind(reduction='mean')."
        )


def test_value_and_grad_refuses_a_rule_that_is_no_scalar() -> None:
    with pytest.raises(ValueError, match=r"tanh must return a scalar, got \(3,\)"):
        jaxprop.value_and_grad(jaxprop.tanh)(normal(0, 3))


def test_params_of_another_network_are_refused_by_the_chain() -> None:
    params, x, y = batch()
    del params["output"]
    with pytest.raises(ValueError, match="chain: params must be a dict with the layers"):
        make("no penalty", "separate")(params, x, y)


def test_a_filter_that_selects_nothing_is_refused_by_the_penalty() -> None:
    J = jaxprop.cost(NETWORK, jaxprop.mean_squared_error, jaxprop.l2.bind(leaves="*/kernel"))
    with pytest.raises(ValueError, match="l2: leaves must select at least one leaf"):
        J(*batch(), LAMBDA)


@pytest.mark.parametrize("reading", READINGS)
def test_a_strength_that_is_no_scalar_is_refused(reading: str) -> None:
    """A sweep is `jax.vmap` over the strength: J itself is one number."""
    with pytest.raises(ValueError, match="strength"):
        make("l2", reading)(*batch(), jnp.array([0.1, 0.2, 0.3]))


def test_what_the_loss_takes_after_y_hat_may_be_given_by_name() -> None:
    x, labels = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3), jnp.arange(4) % 3
    network = jaxprop.chain(only=jaxprop.dense(3))
    params = {"only": {"w": normal(0, 3, 3), "b": normal(1, 3)}}
    J = jaxprop.cost(network, jaxprop.softmax_cross_entropy)
    y = {"labels": labels, "label_smoothing": jnp.asarray(0.1), "z_loss": jnp.asarray(0.01)}

    def plain(params: Any, smoothing: jax.Array) -> jax.Array:
        logits = x @ params["only"]["w"] + params["only"]["b"]
        log_p = jax.nn.log_softmax(logits)
        soft = (1 - smoothing) * jax.nn.one_hot(labels, 3) + smoothing / 3
        lse = jax.nn.logsumexp(logits, axis=-1)
        return jnp.mean(-jnp.sum(soft * log_p, axis=-1) + 0.01 * lse * lse)

    @quickly
    def both(params: Any, y: dict[str, jax.Array]) -> tuple:
        value, saved = J.forward(params, x, y)
        dparams, _, dy, _, _ = J.backward(saved, jnp.ones(()))
        assert dy.pop("labels") is None
        truth = jax.value_and_grad(plain, (0, 1))(params, y["label_smoothing"])
        return (value, (dparams, dy["label_smoothing"])), truth

    assert_near(*both(params, y), reduced=12)


def test_a_name_that_the_loss_does_not_know_is_refused() -> None:
    network = jaxprop.chain(only=jaxprop.dense(3))
    x = jnp.ones((2, 3))
    params = network.init(jax.random.key(0), x.shape)
    J = jaxprop.cost(network, jaxprop.mean_squared_error)
    with pytest.raises(TypeError, match="mean_squared_error"):
        J(params, x, {"y": x, "smoothing": jnp.ones(())})


def squared_and_largest() -> jaxprop.Rule:
    """J = sum(p * p), and beside it the largest entry, a value that g may reach too."""

    def squared(p: jax.Array, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        return jnp.sum(p * p), {"largest": jnp.max(p) + x}

    def forward(p: jax.Array, x: jax.Array) -> tuple:
        return squared(p, x), p

    def backward(p: jax.Array, g: tuple) -> tuple:
        g_J, g_aux = g
        at = jnp.zeros_like(p).at[jnp.argmax(p)].set(g_aux["largest"])
        return 2 * p * g_J + at, g_aux["largest"]

    return jaxprop.Rule(squared, forward, backward)


def test_value_and_grad_hands_on_what_is_beside_the_cost_and_gives_it_no_cotangent() -> None:
    J, p = squared_and_largest(), jnp.array([1.0, 3.0, -2.0])
    (value, aux), dp = jaxprop.value_and_grad(J, has_aux=True)(p, 0.5)
    assert (float(value), float(aux["largest"])) == (14.0, 3.5)
    assert_near(dp, 2 * p)
    (value_jax, _), dp_jax = jax.value_and_grad(J, has_aux=True)(p, 0.5)
    assert_near((value, dp), (value_jax, dp_jax))


def test_value_and_grad_refuses_a_pair_without_has_aux_and_with_it_what_is_no_pair() -> None:
    with pytest.raises(TypeError, match="must return a pair") as refused:
        jaxprop.value_and_grad(jaxprop.l2, has_aux=True)({"w": jnp.ones(2)})
    assert str(refused.value).startswith(
        "value_and_grad: with has_aux l2 must return a pair (J, aux), got Array"
    )
    with pytest.raises(TypeError, match="must return a scalar") as refused:
        jaxprop.value_and_grad(squared_and_largest())(jnp.ones(2), 0.5)
    assert str(refused.value) == (
        "value_and_grad: squared must return a scalar, got tuple. Give has_aux=True where it is a "
        "pair (J, aux)."
    )
