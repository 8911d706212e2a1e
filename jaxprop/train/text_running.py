"""A whole run on text: corpus, experiment, folder, training, samples, and what is said about it."""

import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from tqdm import tqdm

from jaxprop.installing import PyTree
from jaxprop.models.decoding import Choice, generate
from jaxprop.train.corpus import load_corpus
from jaxprop.train.errors import TrainingError
from jaxprop.train.interruption import interruption
from jaxprop.train.language import LanguageExperiment, prepare_language
from jaxprop.train.loop import Finished, Measuring, fit
from jaxprop.train.measuring import language_scores, make_language_measure
from jaxprop.train.options import TextOptions
from jaxprop.train.pictures import draw_text
from jaxprop.train.progress import Progress, score
from jaxprop.train.run_folder import RunFolder, create, next_free, reopen
from jaxprop.train.running import RUNS, cross_checks
from jaxprop.train.starting import keep, start_kept, start_of

TEXT = Measuring(make_language_measure, language_scores)
SAMPLES = "samples.txt"
# A sample begins after this, and is a little likelier than what the network says.
PROMPT, TEMPERATURE = "\n", 0.8


def run_text(options: TextOptions) -> int:
    """Do what the options say; return the exit code.

    Raises TrainingError where it cannot be done.
    """
    config, files = options.config, options.files
    if config.optimisation.plant != "none":
        raise TrainingError(
            f"--plant is for the dense network of the notes, got {config.optimisation.plant} with "
            "text. Leave it out."
        )
    with jax.enable_x64(config.optimisation.dtype == "float64"):
        corpus, path = load_corpus(config.language.text), files.run or next_free(RUNS, "text")
        if files.resume:
            experiment = prepare_language(config, corpus, start_kept(path, config))
            folder = reopen(path, config)
        else:
            experiment = prepare_language(config, corpus, start_of(config))
            folder = create(path, config)
            keep(config.tuning.start, path)
        print(_summary(experiment, folder), flush=True)
        with interruption() as stop_asked, Progress(config.optimisation.epochs) as progress:
            write = _sampler(experiment, folder, min(files.sample, config.language.length - 1))
            finished = fit(
                experiment, folder, progress, stop_asked, files.save_every, TEXT, after_epoch=write
            )
        if finished.stopped_by is not None:
            print(_how_to_resume(experiment, folder, finished))
            return 128 + finished.stopped_by
        return _report(experiment, folder)


def _summary(experiment: LanguageExperiment, folder: RunFolder) -> str:
    """What is about to be trained."""
    language, optimisation = experiment.config.language, experiment.config.optimisation
    corpus, unit = experiment.corpus, experiment.text.unit
    count = sum(leaf.size for leaf in jax.tree.leaves(experiment.shapes))
    trained = sum(leaf.size for leaf in jax.tree.leaves(experiment.trained_shapes))
    part = f" of which {trained:,} are trained," if trained < count else ""
    by = "jax.grad of the references" if optimisation.automatic else "hand-written backward passes"
    return "\n".join(
        [
            f"{corpus.name}: {len(corpus.train):,} training and {len(corpus.held_out):,} held-out "
            "bytes",
            f"network: {language.family}, {language.depth} blocks of width {language.width}, "
            f"{count:,} parameters,{part} {optimisation.dtype}",
            f"J = cross-entropy of the next {unit} in {optimisation.batch_size} sequences of "
            f"{language.length}, by {by}",
            f"{optimisation.optimiser}, {optimisation.schedule} schedule, learning rate "
            f"{optimisation.learning_rate:g}, {optimisation.epochs} epochs of {language.steps} "
            "steps",
            f"run folder: {folder.path}",
        ]
    )


def _sampler(
    experiment: LanguageExperiment, folder: RunFolder, count: int
) -> Callable[[int, PyTree], None]:
    """Writes a sample of the network's text after an epoch, on the screen and into the folder."""
    if count < 1:
        return lambda epoch, params: None

    @jax.jit
    def sample(params: PyTree, key: jax.Array) -> jax.Array:
        prompt = jnp.asarray([experiment.text.encode(PROMPT) or [0]], jnp.int32)
        choice = Choice(temperature=TEMPERATURE)
        return generate(experiment.model, params, prompt, count, key, choice)

    def write(epoch: int, params: PyTree) -> None:
        key = jax.random.fold_in(jax.random.key(experiment.config.optimisation.seed), epoch)
        text = experiment.text.decode(sample(params, key)[0].tolist())
        tqdm.write("\n".join(f"    | {line}" for line in text.splitlines()))
        with (folder.path / SAMPLES).open("a", encoding="utf-8") as file:
            file.write(f"epoch {epoch}\n{text}\n\n")

    return write


def _how_to_resume(experiment: LanguageExperiment, folder: RunFolder, finished: Finished) -> str:
    epochs, within = divmod(finished.steps, experiment.steps_per_epoch)
    name = signal.Signals(finished.stopped_by or 0).name
    arguments = shlex.join(["text", "--run", str(folder.path), "--resume"])
    return (
        f"stopped by {name} after {epochs} epochs and {within} steps, saved. To go on:\n"
        f"  python scripts/train.py {arguments}"
    )


def _report(experiment: LanguageExperiment, folder: RunFolder) -> int:
    """Say and draw how it ended."""
    records = folder.records()
    pictures: list[Path] = draw_text(folder.path, records)
    print(f"held-out {score(records[-1])}")
    print(cross_checks(records))
    print(f"pictures: {' '.join(path.name for path in pictures)} in {folder.path}")
    return 0
