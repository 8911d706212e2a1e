"""The command `scripts/benchmark.py`: arguments in, an exit code out, no traceback."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import count
from pathlib import Path

import jax

from jaxprop.benchmarking.timing import Entry, Timed, measure

EXTRAS = ("matplotlib", "sklearn", "tyro", "orbax", "tqdm")
# Above this share of the cores busy before the start, times are not to be trusted.
BUSY = 0.5


@dataclass(frozen=True)
class Options:
    """Time and memory of hand-written backward passes against automatic differentiation,
    scikit-learn and PyTorch (where installed). Every contender's result is checked first; a
    wrong one is reported and not timed."""

    only: str = "*"
    """Which entries, as a glob: step-*, training-width256, rule-attention-*, ..."""
    list: bool = False
    """Name the entries and do nothing."""
    quick: bool = False
    """The smallest entry of each kind and few turns: whether it runs, not how fast."""
    budget: float = 20.0
    """Seconds of timing per entry."""
    settle: bool = True
    """Before each training run, wait until the worker threads of the last one are idle."""
    out: Path | None = None
    """Folder for results.json and ratios.png; new or empty. runs/benchmark-<number> if none."""
    markdown: Path | None = None
    """File to write the table to as Markdown, with the command and the machine."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Benchmark as the arguments say; return the exit code: 0, or 1 where it cannot be done,
    or a contender is wrong."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        import tyro

        options = tyro.cli(Options, prog="benchmark.py", args=arguments)
        return _run(options, arguments)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in EXTRAS:
            raise
        return _fail(f"needs {error.name}, which is not installed: pip install -e '.[train]'.")
    except (OSError, ValueError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("stopped; nothing was written.", 130)


def _run(options: Options, arguments: Sequence[str]) -> int:
    from jaxprop.benchmarking import report

    if not options.budget > 0:
        raise ValueError(f"--budget must be above 0 seconds, got {options.budget:g}.")
    chosen = {
        name: make for name, make in _entries(options.quick) if fnmatchcase(name, options.only)
    }
    if options.list or not chosen:
        if not chosen:
            names = " ".join(name for name, _ in _entries(options.quick))
            raise ValueError(f"--only must match one of {names}; got {options.only!r}.")
        print("\n".join(chosen))
        return 0
    if options.markdown is not None and not options.markdown.parent.is_dir():
        raise ValueError(f"--markdown must be in a folder that exists, got {options.markdown}.")
    folder = _folder(options.out)
    machine = _machine()
    print(report.line(report.COLUMNS), flush=True)
    entries: dict[str, dict[str, Timed]] = {}
    for name, make in chosen.items():
        least, budget = (3, 1.0) if options.quick else (5, options.budget)
        entries[name] = measure(make(), budget, least, settle=options.settle)
        lines = [report.line(cells) for cells in report.rows(name, entries[name])]
        print("\n".join(lines), flush=True)
    found = report.Results(machine, entries)
    (folder / "results.json").write_text(json.dumps(found.as_json(), indent=1) + "\n")
    report.plot(found, folder / "ratios.png")
    if options.markdown is not None:
        command = shlex.join(["scripts/benchmark.py", *arguments])
        options.markdown.write_text(report.markdown(found, command))
    print(f"results.json and ratios.png in {folder}")
    wrong = [t for timed in entries.values() for t in timed.values() if t.contender.error]
    return 1 if wrong else 0


def _entries(quick: bool) -> Iterator[tuple[str, Callable[[], Entry]]]:
    from jaxprop.benchmarking.fine_tuning import fine_tuning_entries
    from jaxprop.benchmarking.networks import network_entries
    from jaxprop.benchmarking.networks_convolutional import convolutional_network_entries
    from jaxprop.benchmarking.networks_recurrent import recurrent_network_entries
    from jaxprop.benchmarking.rules_attention import attention_entries
    from jaxprop.benchmarking.rules_convolution import convolution_entries
    from jaxprop.benchmarking.rules_elementwise import elementwise_entries
    from jaxprop.benchmarking.rules_linear import linear_entries
    from jaxprop.benchmarking.rules_losses import losses_entries
    from jaxprop.benchmarking.rules_normalisation import normalisation_entries
    from jaxprop.benchmarking.rules_recurrent import recurrent_entries
    from jaxprop.benchmarking.steps import step_entries
    from jaxprop.benchmarking.training import training_entries

    yield from step_entries(quick)
    yield from training_entries(quick)
    yield from network_entries(quick)
    yield from convolutional_network_entries(quick)
    yield from recurrent_network_entries(quick)
    yield from fine_tuning_entries(quick)
    yield from attention_entries(quick)
    yield from convolution_entries(quick)
    yield from elementwise_entries(quick)
    yield from linear_entries(quick)
    yield from losses_entries(quick)
    yield from normalisation_entries(quick)
    yield from recurrent_entries(quick)


def _folder(given: Path | None) -> Path:
    candidates = (Path("runs") / f"benchmark-{number:03d}" for number in count(1))
    folder = given or next(path for path in candidates if not path.exists())
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--out must be a new or empty folder, got {folder}. Give another.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _machine() -> dict[str, str]:
    """What a reader must know of where this was measured."""
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    if load > BUSY * cores:
        print(f"benchmark: the machine is busy (load {load:.1f} on {cores} cores)", file=sys.stderr)
    device = jax.devices()[0]
    return {
        "device": f"{device.platform} ({device.device_kind})",
        "cores": str(cores),
        "system": f"{platform.system()} {platform.machine()}",
        "load before": f"{load:.2f}",
        "Python": platform.python_version(),
        "jax": jax.__version__,
        **_others(),
    }


def _others() -> dict[str, str]:
    import sklearn

    versions = {"scikit-learn": sklearn.__version__}
    try:
        import torch
    except ImportError:
        return versions | {"PyTorch": "not installed"}
    return versions | {"PyTorch": torch.__version__}


def _fail(message: str, code: int = 1) -> int:
    print(f"benchmark: {message}", file=sys.stderr)
    return code
