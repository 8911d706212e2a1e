"""docs/catalogue.md from measurements: every rule, what it saves, and how it compares."""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxprop.catalogue import CATALOGUE
from jaxprop.rule import Rule

HEADS = ("rule", "saved, recomputed", "bytes", "time", "float32", "bfloat16", "verdict")
LEGEND = """# The catalogue

Every rule, in reading order: a line of what it is (more in `help(jaxprop.<rule>)`), and what was
measured. **bytes**: what the forward saves at the rule's first case beyond arguments and output;
automatic differentiation of the reference in brackets. **time**: forward and backward, jitted,
over automatic differentiation of the plain code, by benchmark entry, where it was measured.
**float32, bfloat16**: the worst error over cases, outputs and
arguments in ulps of the largest value, against float64 on the same rounded inputs, automatic
differentiation's in brackets. A verdict WARN is a doubt that docs/checking.md explains.
"""


@dataclass(frozen=True)
class Options:
    """Make the page of the catalogue from what the checker and the benchmark wrote."""

    conformance: tuple[Path, ...]
    """Files of scripts/check_vjps.py --json; the last one wins."""
    benchmark: tuple[Path, ...] = ()
    """Files results.json of scripts/benchmark.py; the last one wins."""
    out: Path = Path("docs/catalogue.md")
    """The page to write."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; return the exit code: 0, or 1 where a file cannot be read or written."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        import tyro

        options = tyro.cli(Options, prog="catalogue_page.py", args=arguments)
        checked = [json.loads(path.read_text()) for path in options.conformance]
        timed = [json.loads(path.read_text()) for path in options.benchmark]
        options.out.write_text(page(checked, timed))
    except SystemExit as leaving:
        return 1 if leaving.code else 0
    except ModuleNotFoundError as error:
        if error.name != "tyro":
            raise
        return _fail("needs tyro, which is not installed: pip install -e '.[train]'.")
    except OSError as error:
        return _fail(str(error))
    except (KeyError, TypeError, ValueError) as error:
        return _fail(f"a file is not what the commands write ({type(error).__name__}: {error}).")
    print(f"{options.out} has {len(CATALOGUE)} rules")
    return 0


def _fail(message: str) -> int:
    print(f"catalogue_page: {message}", file=sys.stderr)
    return 1


def page(checked: Sequence[Mapping[str, Any]], timed: Sequence[Mapping[str, Any]]) -> str:
    """The page's text.

    Args:
        checked: what `scripts/check_vjps.py --json` wrote.
        timed: what `scripts/benchmark.py` wrote.
    """
    rows = {row["name"]: row for found in checked for row in found["rows"]}
    entries = {name: entry for found in timed for name, entry in found["entries"].items()}
    table = ["| " + " | ".join(HEADS) + " |", "|---" * len(HEADS) + "|"]
    for rule in CATALOGUE:
        cells = [cell.replace("|", "\\|") for cell in _cells(rule, rows, entries)]
        table.append("| " + " | ".join(cells) + " |")
    return "\n".join([LEGEND, *_sources(checked, timed), "", *table]) + "\n"


def _sources(
    checked: Sequence[Mapping[str, Any]], timed: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """The commands that measured, and where."""
    machines = [found["machine"] for found in (*checked, *timed)]
    words = {"; ".join(f"{name} {value}" for name, value in m.items()): None for m in machines}
    yield "Made by `scripts/catalogue_page.py` from the files of"
    yield from dict.fromkeys(f"`{found['command']}`," for found in checked)
    yield "and `scripts/benchmark.py --only 'rule-*'`, on" if timed else "on"
    yield from (f"{said}." for said in words)


def _cells(rule: Rule, rows: Mapping[str, Any], entries: Mapping[str, Any]) -> Iterator[str]:
    yield f"`{rule.name}`: {summary(rule)}"
    yield residuals(rule)
    row = rows.get(rule.name)
    yield _pair(row and row["residual_bytes"], "{}")
    yield "<br>".join(_times(rule.name, entries)) or "-"
    for dtype in ("float32", "bfloat16"):
        yield _pair(row and row["ulps"].get(dtype), "{:.2g}")
    yield row["verdict"] if row else "not checked"


def summary(rule: Rule) -> str:
    """The first sentence of the docstring."""
    return (rule.reference.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")


def residuals(rule: Rule) -> str:
    """What the docstring says is saved and what is recomputed."""
    found = re.search(r"Residuals: (.*?)\n\n", rule.reference.__doc__ or "", re.DOTALL)
    return re.sub(r"\s+", " ", found[1]) if found else "-"


def _pair(found: Mapping[str, Any] | None, form: str) -> str:
    """A hand-written rule's number, automatic differentiation's in brackets."""
    if not found:
        return "-"
    custom, automatic = (_number(found[key], form) for key in ("custom", "automatic"))
    return custom + (f" ({automatic})" if automatic else "")


def _number(value: Any, form: str) -> str:
    return "" if value is None else value if isinstance(value, str) else form.format(value)


def _times(name: str, entries: Mapping[str, Any]) -> Iterator[str]:
    for entry, found in entries.items():
        if not entry.startswith(f"rule-{name}-"):
            continue
        ratios = found.get("by hand", {}).get("ratios", {})
        for baseline, ratio in list(ratios.items())[:1]:  # the first is the plain code
            of = "" if baseline == "automatic" else f" of {baseline}"
            yield f"{ratio['median']:.2f}{of} ({entry.removeprefix(f'rule-{name}-')})"
