"""Convnets in training: settings, images, running statistics, resuming, both gradients."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop.models.batch_statistics import initial, updated
from jaxprop.models.resnet import ResNetConfig
from jaxprop.train import networks
from jaxprop.train.command import main
from jaxprop.train.config import Config, Network, as_json, from_json
from jaxprop.train.data import Split, split
from jaxprop.train.dataset import Dataset
from jaxprop.train.errors import TrainingError
from jaxprop.train.experiment import Experiment
from jaxprop.train.loop import fit
from jaxprop.train.measuring import IMAGES, make_measure
from jaxprop.train.run_folder import RunFolder, create
from jaxprop.train.step import initial_state, make_run_steps
from tests.tolerances import assert_near
from tests.train.small import Silent, experiment, made_up
from tests.train.test_idx import write

LENET: dict[str, Any] = {"family": "lenet", "channels": (2, 3), "layers": (5,)}
RESNET: dict[str, Any] = {
    "family": "resnet18",
    "channels": (2, 2, 3, 3),
    "layers": (64, 64),
    "activations": ("relu",),
}
EACH = {"lenet": LENET, "resnet18": RESNET}


@pytest.fixture(autouse=True)
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block in each stage: eight take minutes to compile, and are tested in tests/models."""
    monkeypatch.setattr(networks, "ResNetConfig", partial(ResNetConfig, depths=(1, 1, 1, 1)))


def images(examples: int = 40) -> Split:
    """Two classes: bright above, bright below."""
    generator = np.random.default_rng(0)
    x = generator.normal(8.0, 2.0, (examples, 4, 5, 1))
    y = np.arange(examples, dtype=np.int32) % 2
    x[y == 0, :2] += 6.0
    x[y == 1, 2:] += 6.0
    return split(Dataset("made_up", "classes", x, y, classes=("above", "below")), 0)


def convnet(family: str, **changes: Any) -> Experiment:
    settings = {"epochs": 2, "batch_size": 12, **EACH[family], **changes}
    return experiment(data=images(), **settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"channels": (3,)}, "a dense network has no channels, got 3. Change --channels."),
        ({"family": "lenet", "channels": (3, 0)}, "at least 1 channel, got 0. Change --channels."),
        (
            {"family": "lenet", "activations": ("relu", "tanh")},
            "lenet takes 1 activation, got relu tanh. Change --activations.",
        ),
        (
            {"family": "resnet18", "channels": (3, 4)},
            "resnet18 has 4 stages, got 3 4. Change --channels.",
        ),
        (
            {"family": "resnet18", "layers": ()},
            "resnet18 has no layers to choose, got none. Change --layers.",
        ),
        (
            {"family": "resnet18", "activations": ("tanh",)},
            "resnet18 has no activations to choose, got tanh. Change --activations.",
        ),
        ({"family": "vgg"}, "--family must be one of dense, lenet, resnet18, got 'vgg'."),
    ],
)
def test_settings_that_do_not_fit_the_family_are_refused(settings: dict, says: str) -> None:
    with pytest.raises(TrainingError) as refused:
        Network(**settings)
    assert str(refused.value).endswith(says)


def test_a_run_from_before_there_were_families_is_one_of_a_dense_network() -> None:
    saved = as_json(Config())
    del saved["network"]["family"], saved["network"]["channels"]
    assert from_json(saved, Config) == Config()


def test_features_are_no_images() -> None:
    with pytest.raises(TrainingError, match=r"--family lenet must have images, got made_up"):
        experiment(data=split(made_up(), 0), **LENET)


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"LeNetConfig: an image must be at least 8 places"):
        convnet("lenet", channels=(2, 2, 2))


@pytest.mark.parametrize("changes", [{"activity_penalty": "l2"}, {"reading": "folded"}])
def test_resnet_refuses_penalties_that_it_does_not_have(changes: dict) -> None:
    with pytest.raises(TrainingError, match=r"--family resnet18 takes a penalty on the parameters"):
        convnet("resnet18", **changes)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--plant", "E3"], "--plant is for the dense network of the notes, got E3 with --family"),
        (["--trace"], "--trace is for chains, dense and lenet, got --family resnet18."),
    ],
)
def test_what_a_family_does_not_have_is_one_line(
    arguments: list[str], says: str, tmp_path: Path, capsys: Any
) -> None:
    run = ["--family", "resnet18", "--run", str(tmp_path / "run"), *arguments]
    assert main(run) == 1
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_lenet_trains_on_mnist_files(tmp_path: Path, capsys: Any) -> None:
    """A few small images in files of MNIST's names and format."""
    files, run = tmp_path / "data", tmp_path / "run"
    files.mkdir()
    write(files)
    small = ["--family", "lenet", "--channels", "3", "--layers", "8", "--epochs", "1"]
    place = ["--dataset", "mnist", "--data-dir", str(files), "--run", str(run)]
    assert main([*small, *place]) == 0
    said = capsys.readouterr().out
    assert "network: 4 x 3 x 1 -> 5 x 5 convolution of 3 relu, pooled -> 8 relu -> 10" in said
    assert "mnist: 12 training and 5 held-out examples" in said
    assert (run / "mistakes.png").exists()


def test_images_keep_their_shape_and_are_standardised_by_colour() -> None:
    made = convnet("lenet")
    assert made.x.shape == (32, 4, 5, 1)
    assert_near((1 + jnp.mean(made.x), jnp.std(made.x)), (1.0, 1.0), reduced=640)
    rows = made.split.x(made.split.train, np.float32)
    np.testing.assert_array_equal(np.asarray(made.x).reshape(32, -1), rows)


@pytest.mark.slow
@pytest.mark.parametrize("family", EACH)
def test_the_gradients_by_hand_and_by_jax_train_alike(family: str) -> None:
    """In float64: an epoch of Adam lets rounding of float32 grow."""
    with jax.enable_x64(True):
        states = []
        for automatic in (False, True):
            made = convnet(family, dtype="float64", automatic=automatic, learning_rate=1e-3)
            run_steps, order = make_run_steps(made), made.order(1)
            states.append(run_steps(initial_state(made), order, 0, made.steps_per_epoch))
        assert_near(states[0].costs, states[1].costs, reduced=4096)
        assert_near(states[0].running, states[1].running, reduced=4096)


@pytest.mark.slow
def test_the_state_averages_the_statistics_of_each_step() -> None:
    made = convnet("resnet18", learning_rate=1e-3)
    state, order = initial_state(made), made.order(1)
    params, truth = made.init(), initial(made.init())
    assert_near(state.running, truth)
    (_, statistics), _ = jax.jit(made.by_hand)(params, *made.batch(made.data, order[:12]))
    after = make_run_steps(made)(state, order, 0, 1)
    assert_near(after.running, updated(truth, statistics), reduced=64)


@pytest.mark.slow
def test_the_held_out_part_is_judged_by_the_averages() -> None:
    made = convnet("resnet18")
    params = made.init()
    running = jax.tree.map(lambda leaf: leaf + 0.5, initial(params))
    measured = make_measure(made)(params, running)
    truth = made.model.evaluate(params, running, made.x_held)
    assert_near(measured.y_hat, truth, reduced=64)
    assert set(measured.gradient_norms) == {"stem", *(f"stage_{k}" for k in range(1, 5)), "head"}


@pytest.mark.slow
def test_many_images_are_evaluated_in_parts() -> None:
    made = convnet("lenet")
    many = replace(made, x_held=jnp.tile(made.x_held, (2 * IMAGES // 8 + 1, 1, 1, 1)))
    many = replace(many, y_held=jnp.tile(made.y_held, 2 * IMAGES // 8 + 1))
    params = made.init()
    y_hat = make_measure(many)(params).y_hat
    one = make_measure(made)(params)
    assert y_hat.shape == (2 * IMAGES + 8, 2)
    assert_near(y_hat, np.tile(one.y_hat, (2 * IMAGES // 8 + 1, 1)), reduced=64)
    assert set(one.gradient_norms) == {"conv_1", "conv_2", "hidden_1", "output"}


@pytest.mark.slow
@pytest.mark.parametrize("family", EACH)
def test_a_run_that_was_stopped_and_resumed_has_the_same_numbers(
    family: str, tmp_path: Path
) -> None:
    made = convnet(family)
    whole = create(tmp_path / "whole", made.config)
    fit(made, whole, Silent())
    cut = create(tmp_path / "cut", made.config)

    def after_the_first_epoch() -> int | None:
        return 2 if len(cut.records()) > 1 else None

    stopped = fit(made, cut, Silent(), after_the_first_epoch)
    assert stopped.stopped_by == 2
    fit(made, RunFolder(cut.path), Silent())
    assert cut.records() == whole.records()
    assert (cut.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()
