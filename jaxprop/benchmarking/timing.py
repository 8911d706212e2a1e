"""Interleaved timing: contenders take turns, so that what slows the machine slows them all."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

IDLE_SLICE, IDLE_SHARE, IDLE_LIMIT = 0.01, 0.1, 1.0


@dataclass(frozen=True)
class Contender:
    """One way to do an entry's work.

    run:     does it once and waits for the result; may return its own seconds.
    error:   what is wrong with its result; empty where it is right. A wrong one is not timed.
    compile_seconds, temp_bytes, peak_bytes: of its compiled program; None where there is none.
        The peak is arguments, outputs and temporaries, less what is aliased.
    result:  what its correctness was judged by, in words.
    """

    run: Callable[[], float | None]
    error: str = ""
    compile_seconds: float | None = None
    temp_bytes: int | None = None
    peak_bytes: int | None = None
    result: str = ""


@dataclass(frozen=True)
class Entry:
    """Contenders at the same work.

    baselines: the contenders that ratios are taken to.
    warm_up:   how often each runs before it is timed.
    settle:    whether to wait before each run until this process is idle. For contenders of
               several libraries, whose worker threads spin for a while after the last call.
    """

    name: str
    baselines: tuple[str, ...]
    contenders: Mapping[str, Contender]
    warm_up: int = 3
    settle: bool = False


class Ratio(NamedTuple):
    """The median and the quartiles of the ratios of times, turn by turn."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Timed:
    """One contender's times: the median, every sample, and by baseline the ratio to it."""

    contender: Contender
    seconds: float | None = None
    ratios: Mapping[str, Ratio] = field(default_factory=dict)
    samples: list[float] = field(default_factory=list, repr=False)


def measure(
    entry: Entry, budget: float, least: int = 5, most: int = 1000, settle: bool = True
) -> dict[str, Timed]:
    """Time the right contenders in turn until the budget, in seconds, is used.

    Args:
        entry: what to time.
        budget: seconds for all turns together.
        least, most: how many turns there are at any rate, and at most.
        settle: False to run one straight after the other even where the entry would wait.

    Returns:
        By contender; a wrong one has no times.
    """
    right = {name: c for name, c in entry.contenders.items() if not c.error}
    samples: dict[str, list[float]] = {name: [] for name in right}
    for _ in range(entry.warm_up):
        for contender in right.values():
            contender.run()
    started, turn = time.perf_counter(), 0
    while turn < least or (turn < most and time.perf_counter() - started < budget):
        names = list(right) if turn % 2 else list(right)[::-1]
        for name in names:
            if entry.settle and settle:
                wait_until_idle()
            samples[name].append(_seconds(right[name].run))
        turn += 1
    return {
        name: _summary(name, c, samples, entry.baselines) for name, c in entry.contenders.items()
    }


def wait_until_idle() -> None:
    """Sleep until no thread of this process works, IDLE_LIMIT seconds at most."""
    deadline = time.perf_counter() + IDLE_LIMIT
    while time.perf_counter() < deadline:
        before = time.process_time()
        time.sleep(IDLE_SLICE)
        if time.process_time() - before < IDLE_SHARE * IDLE_SLICE:
            return


def _seconds(run: Callable[[], float | None]) -> float:
    started = time.perf_counter()
    own = run()
    return time.perf_counter() - started if own is None else own


def _summary(
    name: str,
    contender: Contender,
    samples: Mapping[str, list[float]],
    baselines: tuple[str, ...],
) -> Timed:
    own = samples.get(name)
    if not own:
        return Timed(contender)
    ratios = {b: _ratio(own, samples[b]) for b in baselines if b != name and samples.get(b)}
    return Timed(contender, float(np.median(own)), ratios, own)


def _ratio(samples: list[float], baseline: list[float]) -> Ratio:
    ratios = np.asarray(samples) / np.asarray(baseline)
    low, middle, high = (float(q) for q in np.quantile(ratios, [0.25, 0.5, 0.75]))
    return Ratio(middle, low, high)


def memory(compiled: Any) -> dict[str, int]:
    """The bytes of a compiled program, for a Contender."""
    found = compiled.memory_analysis()
    used = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return {
        "temp_bytes": found.temp_size_in_bytes,
        "peak_bytes": used - found.alias_size_in_bytes,
    }
