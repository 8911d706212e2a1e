"""Everything that decides a run's numbers, checked when it is made, as JSON and back.

The fields' docstrings are the help of `scripts/train.py`.
"""

import ast
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from jaxprop.train.errors import TrainingError
from jaxprop.train.tuning import Tuning

DatasetName = Literal["digits", "breast_cancer", "diabetes", "mnist", "fashion_mnist", "cifar10"]
Penalty = Literal["none", "l2", "l1", "elastic_net"]
ActivityPenalty = Literal["none", "l2", "l1"]
Reading = Literal["separate", "folded"]
NetworkFamily = Literal["dense", "lenet", "resnet18"]
Family = Literal["gpt2", "llama", "lstm", "gru"]
Dtype = Literal["float32", "float64", "bfloat16"]


C = TypeVar("C", bound="Config | LanguageConfig")


@dataclass(frozen=True)
class Network:
    """The data and the network that is trained on it."""

    dataset: DatasetName = "digits"
    """Data to train on.
    The first three come with scikit-learn; the others are read from --data-dir."""
    layers: tuple[int, ...] = (64, 64)
    """Widths of the hidden dense layers, in units, from the input on; none for a linear model.
    The width of the output layer follows from the data. Not for resnet18."""
    activations: tuple[str, ...] = ("relu",)
    """Activation of every hidden layer, or one for each. One for lenet, relu in resnet18.
    relu, elu, tanh, silu, gelu_erf, gelu_tanh or another rule of one array."""
    family: NetworkFamily = "dense"
    """dense: dense layers alone. For images, lenet: convolutions with poolings, then dense layers;
    resnet18: residual blocks of convolutions with batch norms."""
    channels: tuple[int, ...] = ()
    """Channels of the convolutions: of lenet one number for each, of resnet18 for each of 4 stages.
    None for the usual ones: 6 16, and 64 128 256 512."""

    def __post_init__(self) -> None:
        _check_choices(self)
        for width in self.layers:
            _require(width >= 1, "every hidden layer needs at least 1 unit", width, "--layers")
        for width in self.channels:
            _require(width >= 1, "every convolution needs at least 1 channel", width, "--channels")
        if self.family == "dense":
            self._require_that(not self.channels, "a dense network has no channels", "channels")
            self._check_activations()
        elif self.family == "lenet":
            one = len(self.activations) == 1
            self._require_that(one, "lenet takes 1 activation", "activations")
        else:
            ok = len(self.channels) in (0, 4)
            self._require_that(ok, "resnet18 has 4 stages", "channels")
            for name in ("layers", "activations"):
                usual = getattr(self, name) == getattr(Network, name)
                self._require_that(usual, f"resnet18 has no {name} to choose", name)

    def _require_that(self, holds: bool, invariant: str, name: str) -> None:
        _require(holds, invariant, _shown(getattr(self, name)) or "none", _flag(name))

    def _check_activations(self) -> None:
        if len(self.activations) not in (1, len(self.layers)):
            raise TrainingError(
                f"--activations must be 1 name or 1 for each of the {len(self.layers)} hidden "
                f"layers, got {len(self.activations)} ({' '.join(self.activations)})."
            )


@dataclass(frozen=True)
class Cost:
    """The penalties in the cost J; the loss follows from the data."""

    penalty: Penalty = "l2"
    """Penalty on the parameters. l2 is half the sum of squares."""
    strength: float = 1e-3
    """Strength of --penalty, the lambda of J = L + lambda Omega; no unit, at least 0."""
    l1_ratio: float = 0.5
    """Share of l1 in elastic_net, from 0 (l2 alone) to 1 (l1 alone)."""
    penalise_biases: bool = False
    """Whether --penalty covers the biases as well as the weights."""
    activity_penalty: ActivityPenalty = "none"
    """Penalty on every layer's output, its mean over the examples."""
    activity_strength: float = 1e-4
    """Strength of --activity-penalty; no unit, at least 0."""
    reading: Reading = "separate"
    """Where the parameter penalty enters: beside the loss, or folded into it.
    The gradients are the same."""

    def __post_init__(self) -> None:
        _check_choices(self)
        for name in ("strength", "activity_strength"):
            value = getattr(self, name)
            ok = math.isfinite(value) and value >= 0
            _require(ok, "a penalty's strength must be finite and at least 0", value, _flag(name))
        ok = 0 <= self.l1_ratio <= 1
        _require(ok, "the share of l1 must lie from 0 to 1", self.l1_ratio, "--l1-ratio")


@dataclass(frozen=True)
class Optimisation:
    """How J is brought down."""

    optimiser: str = "adam"
    """An optimiser of optax by its name there: adam, adamw, sgd, rmsprop, lion, ..."""
    learning_rate: float = 1e-2
    """Learning rate (the highest one, where the schedule varies it); above 0."""
    optimiser_options: tuple[str, ...] = ()
    """Further arguments of the optimiser as name=value: momentum=0.9 nesterov=True."""
    schedule: str = "cosine"
    """A schedule of optax by its name there, its ending left off if you like.
    constant, cosine, warmup_cosine, exponential, linear, ... It spans the whole run."""
    schedule_options: tuple[str, ...] = ()
    """Further arguments of the schedule as name=value: warmup_steps=50 end_value=1e-5."""
    batch_size: int = 32
    """Examples per step; the last batch of an epoch has what is left."""
    epochs: int = 40
    """Passes over the training part."""
    seed: int = 0
    """Fixes the split, the initial parameters and the order of the examples."""
    dtype: Dtype = "float32"
    """Precision of the data and of every layer's output.
    bfloat16 keeps the parameters, the loss and the optimiser in float32."""
    automatic: bool = False
    """Train by jax.grad of the references instead of the hand-written backward passes."""
    plant: str = "none"
    """Plant a slip of the notes in the backward pass: E1, E3, ...
    See what training by a wrong gradient does."""

    def __post_init__(self) -> None:
        _check_choices(self)
        rate = self.learning_rate
        ok = math.isfinite(rate) and rate > 0
        _require(ok, "the learning rate must be finite and above 0", rate, "--learning-rate")
        for name in ("batch_size", "epochs"):
            value = getattr(self, name)
            _require(value >= 1, f"{_flag(name)} must be at least 1", value, _flag(name))
        _require(
            0 <= self.seed < 2**32, "the seed must lie from 0 to 2**32 - 1", self.seed, "--seed"
        )
        if self.automatic and self.plant != "none":
            raise TrainingError(
                f"--plant puts a slip into the hand-written gradient, got {self.plant} with "
                "--automatic, which does not use it. Give one of the two."
            )
        parse_options("--optimiser-options", self.optimiser_options)
        parse_options("--schedule-options", self.schedule_options)


@dataclass(frozen=True)
class Language:
    """The text and the language model that is trained on its bytes."""

    text: str = ""
    """A text file, or a folder of them; the source of Python's standard library where none."""
    family: Family = "gpt2"
    """The blocks: gpt2 (learned positions, layer norm, GELU), llama (rotary, RMS norm, SwiGLU),
    or layers of lstm or gru cells."""
    width: int = 128
    """Features of a token."""
    depth: int = 4
    """Blocks."""
    heads: int = 4
    """Heads of attention, in gpt2 and llama; divides --width."""
    key_heads: int = 0
    """Heads of keys and values in llama, a divisor of --heads; 0 for as many."""
    length: int = 128
    """Tokens in a sequence; they are bytes, but for a network that others made."""
    context: int = 0
    """Positions that gpt2 learns, at least --length; 0 for as many."""
    dropout: float = 0.0
    """Probability of dropping a feature in training, not in llama; from 0 to below 1."""
    save: int = 0
    """What the blocks save for the backward pass: 0 for all that it needs, k for the input of
    every k-th block, from which the rest is computed again."""
    steps: int = 100
    """Steps in an epoch: sequences are drawn at random places, so that an epoch is no pass."""
    clip: float = 1.0
    """The gradient's norm is cut to this; 0 to leave it."""

    def __post_init__(self) -> None:
        _check_choices(self)
        for name in ("width", "depth", "heads", "length", "steps"):
            value = getattr(self, name)
            _require(value >= 1, f"{_flag(name)} must be at least 1", value, _flag(name))
        for name in ("save", "key_heads", "clip", "context"):
            value = getattr(self, name)
            _require(value >= 0, f"{_flag(name)} must be at least 0", value, _flag(name))
        ok = not self.context or self.family == "gpt2"
        _require(ok, "only gpt2 learns positions", self.context, "--context or --family")
        ok = not self.context or self.length <= self.context
        what = f"a sequence must be no longer than the positions that are learned, {self.context}"
        _require(ok, what, self.length, "--length")
        ok = 0 <= self.dropout < 1
        _require(ok, "the dropout rate must lie from 0 to below 1", self.dropout, "--dropout")
        ok = not self.dropout or self.family != "llama"
        _require(ok, "llama has no dropout", self.dropout, "--dropout or --family")
        ok = not self.key_heads or self.family == "llama"
        _require(ok, "only llama has key heads", self.key_heads, "--key-heads or --family")
        ok = self.heads == type(self).heads or self.family in ("gpt2", "llama")
        _require(ok, f"{self.family} has no heads", self.heads, "--heads or --family")


@dataclass(frozen=True)
class Config:
    """A run's settings, in groups."""

    network: Network = field(default_factory=Network)
    cost: Cost = field(default_factory=Cost)
    optimisation: Optimisation = field(default_factory=Optimisation)


@dataclass(frozen=True)
class LanguageConfig:
    """The settings of a run on text, in groups."""

    language: Language = field(default_factory=Language)
    optimisation: Optimisation = field(default_factory=Optimisation)
    tuning: Tuning = field(default_factory=Tuning)


AnyConfig = Config | LanguageConfig


def as_json(config: AnyConfig) -> dict[str, dict[str, Any]]:
    """The settings as plain lists and dicts, one dict per group."""
    return {
        group: {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
        for group, settings in asdict(config).items()
    }


def from_json(saved: Mapping[str, Mapping[str, Any]], kind: type[C]) -> C:
    """The settings of that kind that `as_json` gave.

    Raises TrainingError where a group or a field is missing, unknown or not allowed.
    """
    groups = {f.name: get_type_hints(kind)[f.name] for f in fields(kind)}
    if isinstance(saved, Mapping) and "language" in saved and "language" not in groups:
        raise TrainingError(
            "the run must be one of a dense network, got one on text. Resume it with train.py text."
        )
    try:
        return kind(
            **{
                name: group(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
                for (name, given) in saved.items()
                for group in [groups[name]]
            }
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise TrainingError(
            f"the saved settings must have the groups {list(groups)} and their fields, got one "
            f"that does not fit: {error}. They may be of another version; start a new run."
        ) from None


def differences(saved: AnyConfig, wanted: AnyConfig) -> list[str]:
    """The fields that differ, each as "--flag: saved ..., now ..."."""
    before, now = dict(_flat(saved)), dict(_flat(wanted))
    return [
        f"{_flag(name)}: saved {_shown(before[name])}, now {_shown(now[name])}"
        for name in before
        if before[name] != now[name]
    ]


def parse_options(flag: str, texts: tuple[str, ...]) -> dict[str, Any]:
    """name=value texts as a dict; values are Python literals (numbers, True, None, strings)."""
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            if not (equals and name.isidentifier()):
                raise ValueError
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise TrainingError(
                f"{flag} must be name=value with a number, True, False, None or a quoted string, "
                f"got {text!r}. Write {flag} momentum=0.9, say."
            ) from None
    return options


def _flat(config: AnyConfig) -> Iterator[tuple[str, Any]]:
    for settings in asdict(config).values():
        yield from settings.items()


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check_choices(settings: Any) -> None:
    """Literal fields hold one of their values; Python itself does not look."""
    for name, kind in get_type_hints(type(settings)).items():
        choices, value = get_args(kind), getattr(settings, name)
        if choices and isinstance(choices[0], str) and value not in choices:
            raise TrainingError(
                f"{_flag(name)} must be one of {', '.join(choices)}, got {value!r}."
            )


def _require(holds: bool, invariant: str, got: object, flag: str) -> None:
    if not holds:
        raise TrainingError(f"{invariant}, got {got}. Change {flag}.")
