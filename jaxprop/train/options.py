"""The command line of `scripts/train.py`."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import tyro

from jaxprop.train.config import (
    Config,
    Cost,
    Language,
    LanguageConfig,
    Network,
    Optimisation,
)
from jaxprop.train.errors import TrainingError
from jaxprop.train.run_folder import saved_config
from jaxprop.train.starting import shape_of
from jaxprop.train.tuning import Tuning

T = TypeVar("T")

DESCRIPTION = """Train a network by backward passes that are written down, and check them against
automatic differentiation on the way. Without options: the three-layer network of the
notes on scikit-learn's digits, in seconds on a laptop. For a language model on text:
train.py text --help."""


@dataclass(frozen=True)
class Files:
    """The run's folder, and what is written there."""

    run: Path | None = None
    """Folder of the run: new or empty, or with --resume that of a run.
    Where none is given, a new one: runs/<dataset>-<number>."""
    resume: bool = False
    """Go on with the run in --run. Its settings are kept; none need be repeated."""
    data_dir: Path = Path("data")
    """Folder with the files of mnist, fashion_mnist or cifar10."""
    save_every: float = 5.0
    """Seconds between checkpoints; 0 for one after every epoch."""
    trace: bool = False
    """Print Algorithms 6.3 and 6.4 on the first batch before training, by quantity.
    They are written to trace.txt and trace.png in the run folder too."""


@dataclass(frozen=True)
class Options:
    """Everything that the command line sets."""

    network: Network = field(default_factory=Network)
    cost: Cost = field(default_factory=Cost)
    optimisation: Optimisation = field(default_factory=Optimisation)
    files: Files = field(default_factory=Files)

    @property
    def config(self) -> Config:
        return Config(self.network, self.cost, self.optimisation)


TEXT_DESCRIPTION = """Train a language model on the bytes of a text by backward passes that are
written down, and check them against automatic differentiation on the way. Without options: a small
GPT on the source of Python's standard library, in minutes on a laptop."""


def _optimisation_of_text() -> Optimisation:
    return Optimisation(
        optimiser="adamw",
        optimiser_options=("weight_decay=0.1",),
        learning_rate=2e-3,
        schedule="warmup_cosine",
        batch_size=16,
        epochs=20,
    )


@dataclass(frozen=True)
class TextFiles:
    """The run's folder, and what is written there."""

    run: Path | None = None
    """Folder of the run: new or empty, or with --resume that of a run.
    Where none is given, a new one: runs/text-<number>."""
    resume: bool = False
    """Go on with the run in --run. Its settings are kept; none need be repeated."""
    save_every: float = 30.0
    """Seconds between checkpoints; 0 for one after every epoch."""
    sample: int = 160
    """Bytes of text to write after every epoch; 0 for none."""


@dataclass(frozen=True)
class TextOptions:
    """Everything that the command line of `train.py text` sets."""

    language: Language = field(default_factory=Language)
    optimisation: Optimisation = field(default_factory=_optimisation_of_text)
    tuning: Tuning = field(default_factory=Tuning)
    files: TextFiles = field(default_factory=TextFiles)

    @property
    def config(self) -> LanguageConfig:
        return LanguageConfig(self.language, self.optimisation, self.tuning)


def parse_text(arguments: Sequence[str]) -> TextOptions:
    """What `parse` does, of the arguments after `train.py text`."""
    options = _read(arguments, TextOptions(), "train.py text", TEXT_DESCRIPTION)
    if options.files.resume:
        if options.files.run is None:
            raise TrainingError("--resume needs the folder of a run, got none. Add --run DIR.")
        saved = saved_config(options.files.run, LanguageConfig)
        default = TextOptions(saved.language, saved.optimisation, saved.tuning)
        return _read(arguments, default, "train.py text", TEXT_DESCRIPTION)
    if options.tuning.start:
        return _of_shape(arguments, options.tuning.start)
    return options


def _of_shape(arguments: Sequence[str], start: str) -> TextOptions:
    """The options of a run that starts from others' weights: the network is the one that is there.

    Raises TrainingError where the arguments ask for another.
    """
    shape = shape_of(start)
    context = shape.get("context", Language.length)
    language = Language(**shape, length=min(Language.length, context))
    options = _read(arguments, TextOptions(language), "train.py text", TEXT_DESCRIPTION)
    for name, value in shape.items():
        if (asked := getattr(options.language, name)) != value:
            flag = "--" + name.replace("_", "-")
            raise TrainingError(
                f"{flag} must be that of the network in {start}, {value}, got {asked}. Leave it "
                "out."
            )
    return options


def parse(arguments: Sequence[str]) -> Options:
    """The options that the arguments give; a resumed run's settings where they give none.

    Raises TrainingError, one line, where they do not fit; SystemExit after --help.
    """
    options = _read(arguments, Options(), "train.py", DESCRIPTION)
    if not options.files.resume:
        return options
    if options.files.run is None:
        raise TrainingError("--resume needs the folder of a run, got none. Add --run DIR.")
    saved = saved_config(options.files.run, Config)
    default = Options(saved.network, saved.cost, saved.optimisation)
    return _read(arguments, default, "train.py", DESCRIPTION)


def _read(arguments: Sequence[str], default: T, prog: str, description: str) -> T:
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                type(default),
                prog=prog,
                description=description,
                args=list(arguments),
                default=default,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as error:
        if not error.code:
            raise
        raise TrainingError(f"{_gist(complaint.getvalue())}. See --help.") from None


def _gist(complaint: str) -> str:
    """What tyro says between its title and its first rule after that, as one line.

    It draws boxes, or, where the encoding of stderr has none, only rules of dashes.
    """
    _, *lines = (line.strip(" \u2502") for line in complaint.strip().splitlines())
    said = "\n".join("" if set(line) <= {"-", "\u2500"} else line for line in lines)
    return " ".join(said.strip().split("\n\n")[0].split()).rstrip(".")
