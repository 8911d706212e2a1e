"""Results as a table, as JSON, as Markdown and as a picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from jaxprop.benchmarking.timing import Ratio, Timed

COLUMNS = ("entry", "contender", "median", "turns", "compile", "temp", "peak", "checked", "ratio")
WIDTHS = (52, 23, 10, 7, 9, 11, 11, 17, 0)


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
        "ratios": {baseline: ratio._asdict() for baseline, ratio in timed.ratios.items()},
        "turns": len(timed.samples),
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
        return ("WRONG", "", "", "", "", c.error, "")
    return (
        _seconds(timed.seconds),
        str(len(timed.samples)),
        _seconds(c.compile_seconds),
        _bytes(c.temp_bytes),
        _bytes(c.peak_bytes),
        c.result,
        "; ".join(f"{_ratio(ratio)} of {name}" for name, ratio in timed.ratios.items()),
    )


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def _bytes(value: int | None) -> str:
    return "" if value is None else f"{value / 2**20:.2f} MiB"


def line(cells: tuple[str, ...]) -> str:
    return "".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


def markdown(results: Results, command: str) -> str:
    """The whole as a page: the command, the machine, the table."""
    machine = "; ".join(f"{name} {value}" for name, value in results.machine.items())
    table = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for entry, found in results.entries.items():
        table += ["| " + " | ".join(cells) + " |" for cells in rows(entry, found)]
    return f"Made by `{command}`.\n\n{machine}.\n\n" + "\n".join(table) + "\n"


def plot(results: Results, path: Path) -> None:
    """Each contender's ratio to its entry's first baseline, the quartiles as a bar."""
    shown = [
        (f"{entry}: {name}", ratio)
        for entry, found in results.entries.items()
        for name, timed in found.items()
        for ratio in list(timed.ratios.values())[:1]
    ]
    figure = Figure(figsize=(9, 1.2 + 0.25 * max(1, len(shown))), layout="constrained")
    axes = figure.subplots()
    places = range(len(shown))[::-1]
    for place, (_, ratio) in zip(places, shown, strict=True):
        axes.plot([ratio.low, ratio.high], [place, place], color="tab:blue", lw=3, alpha=0.5)
        axes.plot(ratio.median, place, "o", color="tab:blue")
    axes.axvline(1.0, color="gray", linewidth=1)
    axes.set_yticks(list(places), [label for label, _ in shown], fontsize=8)
    axes.set_ylim(-0.7, max(1, len(shown)) - 0.3)
    axes.set_xscale("log", base=2)
    for formatted in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        formatted("{x:.3g}")
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.set_xlabel(
        "time over that of jax.grad (steps) or of MLPClassifier in float64 (training),\n"
        "median and quartiles; left of 1 is faster"
    )
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)
