"""The command `scripts/sample.py`: text from a run of `train.py text`, or from others' weights."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.installing import PyTree
from jaxprop.models.decoding import Choice, generate
from jaxprop.models.language import LanguageModel
from jaxprop.train.errors import TrainingError

EXTRAS = ("matplotlib", "orbax", "safetensors", "sklearn", "tokenizers", "tqdm", "tyro")


@dataclass(frozen=True)
class Options:
    """Write text with a language model: one trained by `train.py text`, or one of the GPT-2 and
    Llama families in a folder of safetensors."""

    run: Path | None = None
    """Folder of a run of train.py text; its newest checkpoint is used."""
    weights: Path | None = None
    """Folder with config.json, safetensors and tokenizer.json, in place of --run."""
    prompt: str = "\n"
    """What the text begins with."""
    count: int = 200
    """How many tokens to write; of a run they are bytes."""
    samples: int = 1
    """How many texts."""
    temperature: float = 0.8
    """Below 1 the likely tokens are likelier; 0 takes the likeliest each time."""
    top_k: int = 0
    """Among so many of the likeliest tokens alone; 0 for all."""
    top_p: float = 1.0
    """Among the likeliest tokens that have this probability together; 1 for all."""
    seed: int = 0
    """Of the draws."""


class Source(NamedTuple):
    """A language model, its parameters, and its tokens as text and back."""

    model: LanguageModel
    params: PyTree
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write as the arguments say; return the exit code: 0, or 1 where it cannot be done."""
    try:
        import tyro

        options = tyro.cli(Options, prog="sample.py", args=arguments)
        return _run(options)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in EXTRAS:
            raise
        return _fail(
            f"needs {error.name}, which is not installed: pip install -e '.[train,models]'."
        )
    except TrainingError as error:
        return _fail(str(error).removeprefix("train: "))
    except (OSError, ValueError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("stopped.", 130)


def _run(options: Options) -> int:
    _check(options)
    source = _of_run(options.run) if options.run is not None else _of_weights(options.weights)
    tokens = source.encode(options.prompt)
    if not tokens:
        raise TrainingError("--prompt must have at least one token, got none. Begin with a word.")
    choice = Choice(options.temperature, options.top_k, options.top_p)
    prompt = jnp.tile(jnp.asarray(tokens, jnp.int32), (options.samples, 1))

    @jax.jit
    def write(params: PyTree, key: jax.Array, choice: Choice) -> jax.Array:
        return generate(source.model, params, prompt, options.count, key, choice)

    written = np.asarray(write(source.params, jax.random.key(options.seed), choice))
    for number, row in enumerate(written, start=1):
        if options.samples > 1:
            print(f"--- {number}")
        print(source.decode([*tokens, *row.tolist()]))
    return 0


def _check(options: Options) -> None:
    if (options.run is None) == (options.weights is None):
        both = "both" if options.run is not None else "neither"
        raise TrainingError(f"needs --run or --weights, one of the two, got {both}.")
    holds = {
        "--count must be at least 1": options.count >= 1,
        "--samples must be at least 1": options.samples >= 1,
        "--temperature must be at least 0": options.temperature >= 0,
        "--top-k must be at least 0": options.top_k >= 0,
        "--top-p must lie above 0, up to 1": 0 < options.top_p <= 1,
        "--seed must lie from 0 to 2**32 - 1": 0 <= options.seed < 2**32,
    }
    for invariant, ok in holds.items():
        if not ok:
            flag = invariant.split()[0]
            value = getattr(options, flag[2:].replace("-", "_"))
            raise TrainingError(f"{invariant}, got {value}.")


def _of_run(path: Path | None) -> Source:
    from jaxprop.train.config import LanguageConfig
    from jaxprop.train.run_folder import SETTINGS, saved_config
    from jaxprop.train.starting import run_params, start_kept
    from jaxprop.train.text_networks import make_model

    assert path is not None
    if not (path / SETTINGS).is_file():
        raise TrainingError(
            f"--run must be the folder of a run of train.py text, got {path}, which has no "
            f"{SETTINGS}."
        )
    config = saved_config(path, LanguageConfig)
    start = start_kept(path, config)
    params = run_params(path, config, start)
    return Source(
        make_model(start.network, config), params, start.tokens.encode, start.tokens.decode
    )


def _of_weights(path: Path | None) -> Source:
    from jaxprop.models.huggingface import load, tokenizer

    assert path is not None
    model, params = load(path)
    made = tokenizer(path)

    def encode(text: str) -> list[int]:
        return made.encode(text).ids

    return Source(model, params, encode, made.decode)


def _fail(message: str, code: int = 1) -> int:
    print(f"sample: {message}", file=sys.stderr)
    return code
