"""What a check found, as data and as text that can be read in ten seconds."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

# Of what is skipped for one reason, so many places are named; `outcomes` has them all.
SHOWN = 4


@dataclass(frozen=True)
class Finding:
    """One thing that one check says of one argument.

    check:      which check, such as "algebra" or "transforms".
    transform:  at what: the transformation, dtype, edge or shape.
    verdict:    "PASS", "SKIP" (with the reason in `message`), "WARN" or "FAIL".
    argument:   the argument's name and path, such as "params['w']"; empty where it is none.
    message:    what is wrong, in a line.
    index, got, expected, ratio, ulps: the worst element; ulps are of the leaf's largest value.
    automatic_ulps: the error of automatic differentiation in the same place, if measured.
    off, size:  how many elements are off, of how many.
    hint:       what the numbers look like, where they tell.
    repro:      a line of Python that shows it.
    """

    check: str
    transform: str
    verdict: str
    argument: str = ""
    message: str = ""
    index: tuple[int, ...] | None = None
    got: float | None = None
    expected: float | None = None
    ratio: float | None = None
    ulps: float | None = None
    automatic_ulps: float | None = None
    off: int | None = None
    size: int | None = None
    hint: str = ""
    repro: str = ""

    def __str__(self) -> str:
        place = f"{self.check}, {self.transform}" if self.transform else self.check
        lines = [f"{self.verdict}  {place}" + (f": {self.argument}" if self.argument else "")]
        lines += [f"      {text}" for text in (self.message, self._numbers()) if text]
        if self.hint:
            lines.append(f"      looks like: {self.hint}")
        if self.repro:
            lines.append(f"      again: {self.repro}")
        return "\n".join(lines)

    def _numbers(self) -> str:
        if self.got is None or self.expected is None:
            return ""
        at = f"at {list(self.index)}: " if self.index else ""
        text = f"{at}got {self.got:.9g}, expected {self.expected:.9g}"
        if self.ratio is not None:
            text += f", ratio {self.ratio:.6g}"
        if self.ulps is not None:
            text += f"; {self.ulps:.3g} ulps"
        if self.automatic_ulps is not None:
            text += f" (automatic {self.automatic_ulps:.3g})"
        if self.off is not None and self.size:
            text += f"; {self.off} of {self.size} elements off"
        return text


@dataclass(frozen=True)
class Report:
    """Everything that `check` found of one function.

    outcomes: one Finding per thing checked, passes and skips with their reasons included.
    notes: facts that are neither right nor wrong, such as the subgradient at a kink.
    """

    name: str
    seed: int
    outcomes: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    seconds: float = field(default=0.0, compare=False)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is wrong or doubtful, the worst first."""
        serious = [f for f in self.outcomes if f.verdict in ("WARN", "FAIL")]
        return tuple(sorted(serious, key=lambda f: f.verdict != "FAIL"))

    @property
    def verdict(self) -> str:
        verdicts = {finding.verdict for finding in self.outcomes}
        return next((v for v in ("FAIL", "WARN") if v in verdicts), "PASS")

    def raise_if_failed(self) -> None:
        """Raise AssertionError, with the report as its text, where the verdict is FAIL."""
        if self.verdict == "FAIL":
            raise AssertionError(str(self))

    def as_dict(self) -> dict[str, Any]:
        """The report for machines: JSON's types only, words where a number is not finite."""
        return strict_json(
            {
                "name": self.name,
                "verdict": self.verdict,
                "seed": self.seed,
                "seconds": self.seconds,
                "notes": list(self.notes),
                "outcomes": [asdict(outcome) for outcome in self.outcomes],
            }
        )

    def __str__(self) -> str:
        lines = [f"{self.verdict}  {self.name}  ({self.seconds:.1f} s, seed {self.seed})", ""]
        lines += [f"  {check:<20}{text}" for check, text in _summary(self.outcomes)]
        lines += ["", *(str(finding) for finding in first_of_each(self.findings))]
        lines += [f"NOTE  {note}" for note in self.notes]
        return "\n".join(lines).rstrip()


def _summary(outcomes: Iterable[Finding]) -> list[tuple[str, str]]:
    """Per check, how many passed and what did not, skips with their reasons."""
    by_check: dict[str, list[Finding]] = {}
    for outcome in outcomes:
        by_check.setdefault(outcome.check, []).append(outcome)
    return [(check, _counts(found)) for check, found in by_check.items()]


def _counts(outcomes: list[Finding]) -> str:
    counts = [(v, sum(o.verdict == v for o in outcomes)) for v in ("FAIL", "WARN", "PASS")]
    text = ", ".join(f"{number} {verdict}" for verdict, number in counts if number)
    by_reason: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.verdict == "SKIP":
            by_reason.setdefault(outcome.message, []).append(outcome.transform)
    skipped = ", ".join(f"{_few(places)} ({reason})" for reason, places in by_reason.items())
    return "; ".join(part for part in (text, skipped and f"skipped: {skipped}") if part)


def _few(places: list[str]) -> str:
    """The first of them by name, and how many more there are."""
    places = list(dict.fromkeys(places))
    more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
    return ", ".join(places[:SHOWN]) + more


def first_of_each(findings: Iterable[Finding]) -> list[Finding]:
    """One finding per check and argument; the others repeat it at other places."""
    first: dict[tuple[str, str, str], Finding] = {}
    for finding in findings:
        first.setdefault((finding.verdict, finding.check, finding.argument), finding)
    return list(first.values())


def strict_json(value: Any) -> Any:
    """The same with words for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {key: strict_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict_json(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
