"""Interleaved timing: contenders take turns, so that what slows the machine slows them all."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

WARM_UP = 3


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
    """Contenders at the same work; ratios are taken to the `baseline`."""

    name: str
    baseline: str
    contenders: Mapping[str, Contender]


@dataclass(frozen=True)
class Timed:
    """One contender's times; ratio and its quartiles are to the baseline, turn by turn."""

    contender: Contender
    seconds: float | None = None
    ratio: float | None = None
    quartiles: tuple[float, float] | None = None
    turns: int = 0
    samples: list[float] = field(default_factory=list, repr=False)


def measure(entry: Entry, budget: float, least: int = 5, most: int = 1000) -> dict[str, Timed]:
    """Time the right contenders in turn until the budget, in seconds, is used.

    Args:
        entry: what to time.
        budget: seconds for all turns together.
        least, most: how many turns there are at any rate, and at most.

    Returns:
        By contender; a wrong one has no times.
    """
    right = {name: c for name, c in entry.contenders.items() if not c.error}
    samples: dict[str, list[float]] = {name: [] for name in right}
    for _ in range(WARM_UP if budget else 1):
        for contender in right.values():
            contender.run()
    started, turn = time.perf_counter(), 0
    while turn < least or (turn < most and time.perf_counter() - started < budget):
        names = list(right) if turn % 2 else list(right)[::-1]
        for name in names:
            samples[name].append(_seconds(right[name].run))
        turn += 1
    return {
        name: _summary(c, samples.get(name), samples.get(entry.baseline))
        for name, c in entry.contenders.items()
    }


def _seconds(run: Callable[[], float | None]) -> float:
    started = time.perf_counter()
    own = run()
    return time.perf_counter() - started if own is None else own


def _summary(
    contender: Contender, samples: list[float] | None, baseline: list[float] | None
) -> Timed:
    if not samples:
        return Timed(contender)
    if not baseline:
        return Timed(contender, float(np.median(samples)), turns=len(samples), samples=samples)
    ratios = np.asarray(samples) / np.asarray(baseline)
    low, middle, high = (float(q) for q in np.quantile(ratios, [0.25, 0.5, 0.75]))
    return Timed(contender, float(np.median(samples)), middle, (low, high), len(samples), samples)


def memory(compiled: Any) -> dict[str, int]:
    """The bytes of a compiled program, for a Contender."""
    found = compiled.memory_analysis()
    used = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return {
        "temp_bytes": found.temp_size_in_bytes,
        "peak_bytes": used - found.alias_size_in_bytes,
    }
