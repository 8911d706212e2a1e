"""Results as a table, as JSON, as Markdown and as a picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from jaxprop.benchmarking.timing import Timed

COLUMNS = (
    "entry",
    "contender",
    "median",
    "ratio",
    "quartiles",
    "compile",
    "temp",
    "peak",
    "checked",
)


@dataclass(frozen=True)
class Results:
    """machine: where it was measured, in words. entries: by name, by contender."""

    machine: Mapping[str, str]
    entries: Mapping[str, Mapping[str, Timed]]

    def as_json(self) -> dict[str, Any]:
        return {
            "machine": dict(self.machine),
            "entries": {
                entry: {name: _as_json(timed) for name, timed in found.items()}
                for entry, found in self.entries.items()
            },
        }


def _as_json(timed: Timed) -> dict[str, Any]:
    c = timed.contender
    return {
        "seconds": timed.seconds,
        "ratio": timed.ratio,
        "quartiles": timed.quartiles,
        "turns": timed.turns,
        "samples": timed.samples,
        "wrong": c.error,
        "checked": c.result,
        "compile_seconds": c.compile_seconds,
        "temp_bytes": c.temp_bytes,
        "peak_bytes": c.peak_bytes,
    }


def rows(entry: str, found: Mapping[str, Timed]) -> list[tuple[str, ...]]:
    """One row of text per contender."""
    return [(entry, name, *_cells(timed)) for name, timed in found.items()]


def _cells(timed: Timed) -> tuple[str, ...]:
    c = timed.contender
    if c.error:
        return ("WRONG", "", "", "", "", "", c.error)
    quartiles = "" if timed.quartiles is None else "{:.2f} to {:.2f}".format(*timed.quartiles)
    return (
        _seconds(timed.seconds),
        "" if timed.ratio is None else f"{timed.ratio:.2f}",
        quartiles,
        _seconds(c.compile_seconds),
        _bytes(c.temp_bytes),
        _bytes(c.peak_bytes),
        c.result,
    )


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def _bytes(value: int | None) -> str:
    return "" if value is None else f"{value / 2**20:.2f} MiB"


def line(cells: tuple[str, ...]) -> str:
    widths = (26, 22, 10, 7, 14, 10, 12, 12, 0)
    return "".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def markdown(results: Results, command: str) -> str:
    """The whole as a page: the command, the machine, the table."""
    machine = "; ".join(f"{name} {value}" for name, value in results.machine.items())
    table = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for entry, found in results.entries.items():
        table += ["| " + " | ".join(cells) + " |" for cells in rows(entry, found)]
    return f"Made by `{command}`.\n\n{machine}.\n\n" + "\n".join(table) + "\n"


def plot(results: Results, path: Path) -> None:
    """Each contender's ratio to its entry's baseline, the quartiles as a bar."""
    shown = [
        (f"{entry}: {name}", timed.ratio, timed.quartiles)
        for entry, found in results.entries.items()
        for name, timed in found.items()
        if timed.ratio is not None and timed.quartiles is not None and timed.ratio != 1.0
    ]
    figure = Figure(figsize=(9, 1.2 + 0.3 * max(1, len(shown))), layout="constrained")
    axes = figure.subplots()
    places = range(len(shown))[::-1]
    for place, (_, ratio, quartiles) in zip(places, shown, strict=True):
        axes.plot(quartiles, [place, place], color="tab:blue", linewidth=3, alpha=0.5)
        axes.plot(ratio, place, "o", color="tab:blue")
    axes.axvline(1.0, color="gray", linewidth=1)
    axes.set_yticks(list(places), [label for label, *_ in shown], fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("time over the baseline's, median and quartiles (left of 1: faster)")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)
