"""Settings: what is refused, JSON and back, what differs."""

import json
from typing import Any

import pytest

from jaxprop.train.config import (
    Config,
    Cost,
    Network,
    Optimisation,
    as_json,
    differences,
    from_json,
    parse_options,
)
from jaxprop.train.errors import TrainingError


@pytest.mark.parametrize(
    ("group", "wrong", "says"),
    [
        (Network, {"dataset": "digts"}, "--dataset must be one of digits, "),
        (Network, {"layers": (64, 0)}, "at least 1 unit, got 0. Change --layers"),
        (Network, {"layers": (-3,)}, "got -3"),
        (Network, {"activations": ("relu",) * 3}, "1 for each of the 2 hidden layers, got 3"),
        (Network, {"activations": ()}, "got 0"),
        (Cost, {"penalty": "l3"}, "--penalty must be one of none, l2, l1, elastic_net, got 'l3'"),
        (Cost, {"strength": -1.0}, "finite and at least 0, got -1.0. Change --strength"),
        (Cost, {"strength": float("nan")}, "got nan"),
        (Cost, {"activity_strength": float("inf")}, "got inf. Change --activity-strength"),
        (Cost, {"l1_ratio": 1.5}, "from 0 to 1, got 1.5"),
        (Cost, {"reading": "both"}, "--reading must be one of separate, folded"),
        (Optimisation, {"learning_rate": 0.0}, "above 0, got 0.0"),
        (Optimisation, {"learning_rate": -1.0}, "got -1.0. Change --learning-rate"),
        (Optimisation, {"learning_rate": float("inf")}, "got inf"),
        (Optimisation, {"batch_size": 0}, "--batch-size must be at least 1, got 0"),
        (Optimisation, {"epochs": 0}, "--epochs must be at least 1"),
        (Optimisation, {"seed": -1}, "from 0 to 2**32 - 1, got -1"),
        (Optimisation, {"dtype": "float16"}, "--dtype must be one of float32"),
        (Optimisation, {"automatic": True, "plant": "E3"}, "Give one of the two"),
        (Optimisation, {"optimiser_options": ("momentum",)}, "must be name=value"),
    ],
)
def test_wrong_settings_are_refused_with_the_flag_and_what_came(
    group: Any, wrong: dict[str, Any], says: str
) -> None:
    with pytest.raises(TrainingError) as error:
        group(**wrong)
    assert str(error.value).startswith("train: ")
    assert says in str(error.value)


def test_settings_survive_json() -> None:
    config = Config(
        Network(layers=(), activations=("tanh",)),
        Cost(penalty="elastic_net", strength=0.1),
        Optimisation(optimiser_options=("b1=0.8",), learning_rate=1e-7),
    )
    assert from_json(json.loads(json.dumps(as_json(config))), Config) == config


@pytest.mark.parametrize(
    "saved", [{"nonsense": {}}, {"network": {"width": 3}}, {"network": [1]}, {"network": 3}]
)
def test_settings_of_another_version_are_refused(saved: Any) -> None:
    with pytest.raises(TrainingError, match="saved settings"):
        from_json(saved, Config)


def test_differences_name_the_flags_and_both_values() -> None:
    other = Config(Network(layers=(8,)), Cost(reading="folded"))
    assert differences(Config(), other) == [
        "--layers: saved 64 64, now 8",
        "--reading: saved separate, now folded",
    ]
    assert differences(Config(), Config()) == []


def test_options_are_python_literals() -> None:
    texts = ("momentum=0.9", "nesterov=True", "boundaries_and_scales={10: 0.5}", "mask=None")
    assert parse_options("--optimiser-options", texts) == {
        "momentum": 0.9,
        "nesterov": True,
        "boundaries_and_scales": {10: 0.5},
        "mask": None,
    }


@pytest.mark.parametrize("text", ["momentum", "=3", "a b=3", "x=__import__('os')", "x=1+"])
def test_other_options_are_refused(text: str) -> None:
    with pytest.raises(TrainingError, match="must be name=value"):
        parse_options("--optimiser-options", (text,))
