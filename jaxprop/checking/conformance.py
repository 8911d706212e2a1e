"""The conformance table: one row for each rule or function that was checked."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from jaxprop.checking.check import DTYPES, by_options, check
from jaxprop.checking.report import Finding, Report, strict_json
from jaxprop.checking.residuals import kept
from jaxprop.checking.subject import subject
from jaxprop.checking.targets import Target
from jaxprop.rule import Rule

Level = Literal["quick", "full"]
# What `quick` runs at the first case of each setting of a rule's options; the algebra at the rest.
QUICK = ("contract", "algebra", "linearity", "numerics", "transforms")
ALGEBRA = ("algebra",)
LEGEND = (
    "The worst error in ulps of the largest value, the transformations that passed, and the bytes "
    "saved; automatic differentiation's in brackets."
)
DTYPES_OF: Mapping[Level, tuple[str, ...]] = {"quick": ("float32",), "full": DTYPES}


class Ulps(NamedTuple):
    """The worst error over cases, outputs and arguments, in ulps of the leaf's largest value."""

    custom: float
    automatic: float | None


class Transforms(NamedTuple):
    """How many transformations passed, of how many that could run, and how many could not."""

    passed: int
    run: int
    skipped: int


class Residuals(NamedTuple):
    """Bytes that the forward saves at the first case, beyond arguments and output."""

    custom: int
    automatic: int | None


@dataclass(frozen=True)
class Row:
    """What was found of one rule or function."""

    name: str
    cases: int
    report: Report
    residuals: Residuals | None

    def ulps(self, dtype: str) -> Ulps | None:
        """The worst error in a dtype; None where nothing was measured in it."""
        check = "algebra" if dtype == "float64" else "numerics"
        found = [
            outcome
            for outcome in self.report.outcomes
            if outcome.check == check
            and outcome.ulps is not None
            and (dtype == "float64" or dtype in outcome.transform.split(", "))
        ]
        if not found:
            return None
        automatic = [o.automatic_ulps for o in found if o.automatic_ulps is not None]
        return Ulps(max(o.ulps or 0.0 for o in found), max(automatic, default=None))

    @property
    def transforms(self) -> Transforms:
        verdicts: dict[str, set[str]] = {}
        for outcome in self.report.outcomes:
            if outcome.check == "transforms":
                verdicts.setdefault(outcome.transform, set()).add(outcome.verdict)
        run = [found for found in verdicts.values() if found != {"SKIP"}]
        passed = sum(found <= {"PASS", "SKIP"} for found in run)
        return Transforms(passed, len(run), len(verdicts) - len(run))

    def as_dict(self, dtypes: Sequence[str]) -> dict[str, Any]:
        """The row for machines, the whole report included: JSON's types only."""
        ulps = {dtype: self.ulps(dtype) for dtype in ("float64", *dtypes)}
        return strict_json(
            {
                "name": self.name,
                "verdict": self.report.verdict,
                "cases": self.cases,
                "ulps": {dtype: found and found._asdict() for dtype, found in ulps.items()},
                "transforms": self.transforms._asdict(),
                "residual_bytes": self.residuals and self.residuals._asdict(),
                "seconds": self.report.seconds,
                "report": self.report.as_dict(),
            }
        )


def conform(target: Target, level: Level, dtypes: Sequence[str], seed: int) -> Row:
    """Check one target.

    Args:
        target: what, and where.
        level: "full" is everything that `jaxprop.check` does at the arguments or cases; "quick"
            is contract, algebra, linearity, numerics and the transformations on one device at
            the first of them (for a rule: at the first for each setting of its options), and
            the algebra alone at the others.
        dtypes: in which the numerics are judged.
        seed: of every random number.
    """
    places = list(_places(target))
    options = {"dtypes": dtypes, "seed": seed, "reference": target.reference}
    try:
        report = _LEVELS[level](target, places, options)
    except (TypeError, ValueError) as error:
        report = Report("", seed, (Finding("contract", "", "FAIL", message=str(error)),))
    count = len(target.arguments or target.cases)
    return Row(target.name, count, replace(report, name=target.name), _residuals(places[0]))


class _Place(NamedTuple):
    """One set of arguments: its name, the function with the options fixed, and they."""

    name: str
    f: Callable[..., Any]
    args: tuple
    first: bool  # of those with these options


def _places(target: Target) -> Iterator[_Place]:
    """Where a target is checked, edges left out."""
    if target.arguments:
        for number, args in enumerate(target.arguments):
            yield _Place(f"arguments {number}", target.f, args, first=number == 0)
        return
    for bound, group in by_options(target.cases):
        f = target.f.bind(**bound) if isinstance(target.f, Rule) and bound else target.f
        for number, case in enumerate([case for case in group if not case.edge] or group[:1]):
            yield _Place(f"case {case.name!r}", f, case.args, first=number == 0)


def _full(target: Target, places: Sequence[_Place], options: dict[str, Any]) -> Report:
    if not target.arguments:
        return check(target.f, **options)
    first, *others = target.arguments
    return check(target.f, *first, shapes=others, **options)


def _quick(target: Target, places: Sequence[_Place], options: dict[str, Any]) -> Report:
    reports = []
    for place in places:
        checks = QUICK if place.first else ALGEBRA
        found = check(place.f, *place.args, checks=checks, **options)
        suffix = f", {place.name}" if len(places) > 1 else ""
        outcomes = tuple(_suffixed(outcome, suffix) for outcome in found.outcomes)
        reports.append(replace(found, outcomes=outcomes))
    return Report(
        target.name,
        options["seed"],
        tuple(outcome for report in reports for outcome in report.outcomes),
        tuple(dict.fromkeys(note for report in reports for note in report.notes)),
        sum(report.seconds for report in reports),
    )


def _suffixed(outcome: Finding, suffix: str) -> Finding:
    return replace(outcome, transform=f"{outcome.transform}{suffix}".removeprefix(", "))


_LEVELS: Mapping[Level, Callable[..., Report]] = {"quick": _quick, "full": _full}


def _residuals(place: _Place) -> Residuals | None:
    """Bytes saved by f, and by automatic differentiation where there is a reference to take."""
    try:
        s = subject(place.f, place.args, None)
        custom = kept(s.call, s.args).bytes
    except Exception:
        return None  # the contract's findings say what is wrong
    try:
        return Residuals(custom, kept(s.reference, s.args).bytes)
    except Exception:
        return Residuals(custom, None)


def columns(dtypes: Sequence[str]) -> tuple[str, ...]:
    """The headings of the table."""
    return ("rule", "cases", *("float64", *dtypes), "transforms", "bytes", "seconds", "verdict")


def cells(row: Row, dtypes: Sequence[str]) -> tuple[str, ...]:
    """A row of the table as text."""
    ulps = [_pair(row.ulps(dtype)) for dtype in ("float64", *dtypes)]
    return (
        row.name,
        str(row.cases),
        *ulps,
        _share(row.transforms),
        _pair(row.residuals),
        f"{row.report.seconds:.1f}",
        row.report.verdict,
    )


def _share(found: Transforms) -> str:
    if not found.run:
        return "-"
    skipped = f", {found.skipped} skipped" if found.skipped else ""
    return f"{found.passed}/{found.run}{skipped}"


def _pair(found: Ulps | Residuals | None) -> str:
    """A hand-written rule's number, automatic differentiation's in brackets."""
    if found is None:
        return "-"
    custom, automatic = (_number(each) for each in found)
    return custom + (f" ({automatic})" if automatic else "")


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.2g}"


def line(cells: Sequence[str], name_width: int) -> str:
    """Cells side by side; the rules' names need most room."""
    first, *others = cells
    widths = [7, 10, *(17 for _ in others[2:-4]), 18, 16, 9, 0]
    pairs = zip(others, widths, strict=True)
    return (first.ljust(name_width + 2) + "".join(c.ljust(w) for c, w in pairs)).rstrip()


def markdown(rows: Sequence[Row], dtypes: Sequence[str], command: str, machine: str) -> str:
    """The table as a page: the command, the machine, the rows, and what did not pass."""
    heads = columns(dtypes)
    table = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    table += ["| " + " | ".join(cells(row, dtypes)) + " |" for row in rows]
    failed = [str(row.report) for row in rows if row.report.verdict != "PASS"]
    findings = ["", "```text", "\n\n".join(failed), "```"] if failed else []
    return (
        "\n".join([f"Made by `{command}`.", "", f"{machine}.", "", LEGEND, "", *table, *findings])
        + "\n"
    )
