"""ResNet: gradients by hand, statistics in and out, evaluation, the checker, meshes, errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprop
from jaxprop.checking.compiling import quickly
from jaxprop.models.basic_block import block
from jaxprop.models.batch_statistics import (
    initial,
    measured_cost,
    merged,
    parted,
    training_norm,
    updated,
)
from jaxprop.models.resnet import ResNet, ResNetConfig, resnet
from tests.models.test_classifiers import LABELS, REDUCED, parameters
from tests.models.test_meshes import two_devices
from tests.tolerances import assert_near

pytestmark = pytest.mark.usefixtures("x64")

X = np.random.default_rng(0).normal(size=(4, 6, 5, 2))


def tiny(**options: Any) -> ResNet:
    """Two stages: a block whose shortcut is x, one whose shortcut is a convolution."""
    shape = {"classes": 3, "colours": 2, "widths": (3, 4), "depths": (1, 1), **options}
    return resnet(ResNetConfig(**shape))


def both(rule: jaxprop.Rule, *args: Any, of: Any = None) -> tuple:
    """(value, cotangents) by the rule's own backward, and by jax.grad of its reference."""
    wrt = of or tuple(range(len(args)))

    def scalar(f: Any) -> Any:
        return lambda *a: sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(f(*a)))

    @quickly
    def run(*args: Any) -> tuple:
        by_hand = jax.value_and_grad(scalar(rule), wrt)(*args)
        return by_hand, jax.value_and_grad(scalar(rule.reference), wrt)(*args)

    return run(*args)


@pytest.mark.parametrize("stem", ["small", pytest.param("large", marks=pytest.mark.slow)])
def test_loss_and_gradients_are_those_of_the_reference(stem: str) -> None:
    model = tiny(stem=stem)
    params, x, labels = parameters(model), jnp.asarray(X), jnp.asarray(LABELS)

    @quickly
    def run(params: Any) -> tuple:
        by_hand = jaxprop.value_and_grad(model.cost, has_aux=True)(params, x, labels)
        truth = jax.value_and_grad(model.cost.reference, has_aux=True)(params, x, labels)
        return by_hand, truth

    got, truth = run(params)
    assert_near(got, truth, reduced=REDUCED)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(got[1]))


@pytest.mark.slow
@pytest.mark.parametrize("projected", [False, True])
def test_a_block_hands_on_the_cotangents_of_its_statistics_too(projected: bool) -> None:
    one = block(2 if not projected else 3, 1 + projected, projected, training_norm(1e-5), False)
    shapes = jax.eval_shape(lambda: one.init(jax.random.key(0), X.shape))
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape)), shapes)
    got, truth = both(one, params, jnp.asarray(X))
    assert_near(got, truth, reduced=REDUCED)


@pytest.mark.slow
def test_evaluation_takes_the_averages_and_hands_gradients_to_all_it_reads() -> None:
    model = tiny()
    params, x = parameters(model), jnp.asarray(X)
    running = jax.tree.map(lambda leaf: leaf + 0.25, initial(params))
    got, truth = both(model.evaluate, params, running, x)
    assert_near(got, truth, reduced=REDUCED)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(got[1]))


@pytest.mark.slow
def test_evaluation_by_the_statistics_of_a_batch_is_what_training_computes_of_it() -> None:
    model = tiny()
    params, x = parameters(model), jnp.asarray(X)
    logits, statistics = quickly(model.network.reference)(params, x)
    assert_near(quickly(model.evaluate.reference)(params, statistics, x), logits, reduced=REDUCED)
    one = quickly(model.evaluate.reference)(params, statistics, x[:1])
    assert_near(one, logits[:1], reduced=REDUCED)


@pytest.mark.slow
def test_statistics_are_the_means_and_biased_variances_that_each_norm_saw() -> None:
    model = tiny()
    params, x = parameters(model), jnp.asarray(X)
    _, statistics = quickly(model.network)(params, x)
    w = params["stem"]["conv"]["w"]
    a = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    truth = {"mean": a.mean((0, 1, 2)), "var": a.var((0, 1, 2))}
    assert_near(statistics["stem"]["norm"], truth, reduced=REDUCED)
    assert jax.tree.structure(statistics) == jax.tree.structure(initial(params))


def test_running_averages_start_at_0_and_1_and_move_by_the_momentum() -> None:
    params = {"a": {"conv": {"w": 2.0}, "norm": {"gamma": jnp.ones(2), "beta": jnp.ones(2)}}}
    start = initial({**params, "head": {"w": 1.0}})
    assert jax.tree.map(list, start) == {"a": {"norm": {"mean": [0.0, 0.0], "var": [1.0, 1.0]}}}
    seen = jax.tree.map(lambda leaf: leaf + 4.0, start)
    after = updated(start, seen, momentum=0.25)
    assert jax.tree.map(list, after) == {"a": {"norm": {"mean": [1.0, 1.0], "var": [2.0, 2.0]}}}
    assert parted(merged(params, start)) == (params, start)


@pytest.mark.slow
def test_each_block_starts_as_its_shortcut_where_the_last_gamma_is_0() -> None:
    model = tiny(depths=(2, 1))
    params = quickly(model.init)(jax.random.key(0))
    gammas = {
        f"{stage}/{name}": float(part["norm_2"]["gamma"][0])
        for stage, blocks in params.items()
        if stage.startswith("stage")
        for name, part in blocks.items()
    }
    assert gammas == {"stage_1/block_1": 0.0, "stage_1/block_2": 0.0, "stage_2/block_1": 0.0}
    one = block(2, 1, False, training_norm(1e-5), True)
    y, _ = one(one.init(jax.random.key(0), X.shape, jnp.float64), jnp.asarray(X))
    assert_near(y, np.maximum(X, 0))


def test_a_stage_that_changes_the_shape_projects_its_shortcut_and_others_do_not() -> None:
    model = resnet(ResNetConfig(10))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    # torchvision's resnet18 has 11,689,512: less 5,130 for 1000 classes less 10 of (512 + 1), and
    # its 7 x 7 window in place of 3 x 3.
    assert count == 11_689_512 - 990 * 513 - (49 - 9) * 3 * 64
    projected = [
        (stage, name)
        for stage in ("stage_1", "stage_2", "stage_3", "stage_4")
        for name, part in shapes[stage].items()
        if "conv_shortcut" in part
    ]
    assert projected == [("stage_2", "block_1"), ("stage_3", "block_1"), ("stage_4", "block_1")]
    assert shapes["stage_4"]["block_1"]["conv_1"]["w"].shape == (3, 3, 256, 512)


@pytest.mark.slow
def test_a_penalty_adds_to_the_cost_and_to_the_gradient() -> None:
    model, strength = tiny(), {"penalty": jnp.asarray(0.3)}
    penalised = measured_cost(
        model.network, jaxprop.softmax_cross_entropy, jaxprop.l2.bind(leaves="*/w")
    )
    params, x, labels = parameters(model), jnp.asarray(X), jnp.asarray(LABELS)

    @quickly
    def run(params: Any) -> tuple:
        args = params, x, labels, strength
        got = jaxprop.value_and_grad(penalised, has_aux=True)(*args)
        return got, jax.value_and_grad(penalised.reference, has_aux=True)(*args)

    got, truth = run(params)
    assert_near(got, truth, reduced=REDUCED)
    (plain, _), dplain = quickly(jaxprop.value_and_grad(model.cost, has_aux=True))(
        params, x, labels
    )
    weights = [p for path, p in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "w"]
    assert_near(got[0][0] - plain, 0.15 * sum(jnp.sum(w * w) for w in weights), reduced=REDUCED)
    w = "stem", "conv", "w"
    added = at(got[1], w) - at(dplain, w)
    assert_near(added, 0.3 * at(params, w), reduced=REDUCED)


def at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


@pytest.mark.slow
def test_bfloat16_is_computed_in_and_parameters_and_statistics_keep_their_precision() -> None:
    model = tiny()
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), parameters(model))
    x = jnp.asarray(X, jnp.bfloat16)
    run = jax.jit(jaxprop.value_and_grad(model.cost, has_aux=True))
    (loss, statistics), dparams = run(params, x, jnp.asarray(LABELS))
    assert loss.dtype == jnp.float32
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((statistics, dparams))}
    assert dtypes == {jnp.dtype("float32")}
    assert jax.eval_shape(model.network, params, x)[0].dtype == jnp.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["cost", "evaluate"])
def test_the_checker_passes(rule: str) -> None:
    """Everything but second order and meshes: inside shard_map a norm sees one device's batch."""
    model = tiny()
    params, x = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32), (parameters(model), jnp.asarray(X))
    )
    args = {
        "cost": (params, x, jnp.asarray(LABELS)),
        "evaluate": (params, initial(params), x),
    }[rule]
    checks = ["contract", "algebra", "linearity", "transforms", "purity", "residuals"]
    with jax.numpy_dtype_promotion("standard"):
        report = jaxprop.check(getattr(model, rule), *args, checks=checks)
    assert report.verdict == "PASS", str(report)


@pytest.mark.slow
@pytest.mark.parametrize("check_vma", [True, False])
def test_inside_shard_map_each_device_normalises_its_own_batch(check_vma: bool) -> None:
    model = tiny()
    params, x, labels = parameters(model), jnp.asarray(X), jnp.asarray(LABELS)

    def mean(params: Any, x: jax.Array, labels: jax.Array) -> tuple:
        return lax.pmean(model.cost(params, x, labels), "data")

    def halves(params: Any, x: jax.Array, labels: jax.Array) -> tuple:
        parts = [model.cost.reference(params, x[k : k + 2], labels[k : k + 2]) for k in (0, 2)]
        return jax.tree.map(lambda a, b: (a + b) / 2, *parts)

    specs = P(), P("data"), P("data")
    split = jax.shard_map(
        mean, mesh=two_devices(), in_specs=specs, out_specs=P(), check_vma=check_vma
    )
    got = quickly(jax.value_and_grad(split, has_aux=True))(params, x, labels)
    truth = quickly(jax.value_and_grad(halves, has_aux=True))(params, x, labels)
    assert_near(got, truth, reduced=REDUCED)


@pytest.mark.slow
def test_sharded_over_auto_axes_the_batch_is_the_whole_one() -> None:
    model = tiny()
    params, x, labels = parameters(model), jnp.asarray(X), jnp.asarray(LABELS)
    gradient = jaxprop.value_and_grad(model.cost, has_aux=True)
    truth = quickly(gradient)(params, x, labels)
    mesh = two_devices()
    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    with jax.set_mesh(mesh):
        x, labels = jax.device_put((x, labels), rows)
        got = jax.jit(gradient)(jax.device_put(params, whole), x, labels)
    assert_near(jax.device_get(got), jax.device_get(truth), reduced=REDUCED)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "huge"}, "stem must be one of ('small', 'large'), got 'huge'."),
        ({"depths": (2,)}, "widths and depths must have one number for each stage, got 2 and 1."),
        ({"widths": (3, 0)}, "widths[1] must be a positive whole number, got 0."),
        ({"colours": 0}, "colours must be a positive whole number, got 0."),
    ],
)
def test_a_shape_that_cannot_be_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match="ResNetConfig") as refused:
        tiny(**options)
    assert str(refused.value) == f"ResNetConfig: {message}"


def test_params_and_averages_that_do_not_fit_are_refused() -> None:
    model = tiny()
    params, x = parameters(model), jnp.asarray(X)
    with pytest.raises(ValueError, match=r"^resnet: running must have the mean and var of every"):
        model.evaluate(params, {}, x)
    with pytest.raises(ValueError, match=r"^resnet: params must be a dict with the layers"):
        model.network({"stem": params["stem"]}, x)
