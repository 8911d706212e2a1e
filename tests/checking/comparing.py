"""The checker beside the usual tools: who finds which wrong function, and who flags right ones.

    python -m tests.checking.comparing [--seeds N] [--markdown FILE]

takes every mutant and every right function of this folder through `jaxprop.check`,
`jax.test_util.check_grads` and `chex.assert_numerical_grads`. With three seeds, as it is unless
told, it takes two hours of a core.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from tests import conftest  # noqa: F401, isort: skip  (eight host devices, before jax starts)

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import test_util

from jaxprop.checking import check
from jaxprop.checking.subject import floats, is_float, subject
from tests.checking.making import Mutant, Right
from tests.checking.mutants import MUTANTS
from tests.checking.right import RIGHT

SEEDS = 3
PRECISIONS = ("float32", "float64")
ORDERS = (1, 2)
OURS = "jaxprop.check"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


class Function(NamedTuple):
    """A function of floating arrays alone, with floating outputs alone, and its arguments."""

    call: Callable[..., list]
    leaves: list[jax.Array]


class Row(NamedTuple):
    """What each tool said of one function: at how many seeds it objected, None for no answer."""

    name: str
    wrong: bool
    seeds: int
    ours: int
    checks: list[str]
    others: list[int | None]


@dataclass(frozen=True)
class Tool:
    """Someone else's checker, at one order and in one precision; it raises where it objects."""

    name: str
    run: Callable[[Function, int], None]
    precision: str
    order: int

    @property
    def short(self) -> str:
        return f"{self.run.__name__.strip('_')} {self.order}, {self.precision[-2:]}"

    def objects(self, item: Mutant | Right, seed: int) -> bool | None:
        """Whether it objects; None where it cannot judge such a function at all."""
        function, plain = _bare(item, self.precision)
        problem = self._raised(function, seed)
        if problem is None or isinstance(problem, AssertionError):
            return problem is not None
        # An exception is a verdict only where the plain function, run the same way, raises none.
        other = self._raised(plain, seed)
        return None if other is not None and not isinstance(other, AssertionError) else True

    def _raised(self, function: Function, seed: int) -> Exception | None:
        # Both tools draw from RandomState(0), whatever one asks; here each seed draws its own.
        random = np.random.RandomState(seed)
        with (
            jax.enable_x64(self.precision == "float64"),
            jax.numpy_dtype_promotion("standard"),
            mock.patch.object(np.random, "RandomState", return_value=random),
        ):
            try:
                self.run(function, self.order)
            except Exception as error:
                return error
        return None


def _bare(item: Mutant | Right, precision: str) -> tuple[Function, Function]:
    """The function, and what it wraps, over floating leaves; all else is closed over."""
    f, args = _at(item)
    s = subject(f, args, item.options.get("reference"))
    leaves, structure = jax.tree.flatten(s.args)

    def over_leaves(f: Callable) -> Callable[..., list]:
        def call(*moved: Any) -> list:
            parts = iter(moved)
            full = [jnp.asarray(next(parts)) if is_float(x) else x for x in leaves]
            return floats(f(*structure.unflatten(full)))

        return call

    with jax.enable_x64(precision == "float64"):
        arrays = [x.astype(precision) for x in leaves if is_float(x)]
    return Function(over_leaves(s.call), arrays), Function(over_leaves(s.reference), arrays)


def _at(item: Mutant | Right) -> tuple[Callable, tuple]:
    """The function at its arguments, or a rule at its first case."""
    if item.args():
        return item.f, item.args()
    case = item.f.cases()[0]
    return item.f.bind(**case.options) if case.options else item.f, case.args


def _check_grads(function: Function, order: int) -> None:
    test_util.check_grads(function.call, function.leaves, order=order, modes=("rev",))


def _chex(function: Function, order: int) -> None:
    chex.assert_numerical_grads(function.call, function.leaves, order=order, modes=("rev",))


TOOLS = [
    Tool(f"{name}, order {order}, {precision}", run, precision, order)
    for name, run in (("check_grads", _check_grads), ("chex", _chex))
    for precision in PRECISIONS
    for order in ORDERS
]


def _row(seeds: int, position: int) -> Row:
    """Every tool's opinion of one function, at each seed."""
    item = (MUTANTS + RIGHT)[position]
    wrong = isinstance(item, Mutant)
    with jax.numpy_dtype_promotion("standard"):
        reports = [check(item.f, *item.args(), **item.options, seed=seed) for seed in range(seeds)]
    found = [[f for f in r.findings if f.verdict in _objections(item)] for r in reports]
    checks = {finding.check for findings in found for finding in findings}
    meant = checks.intersection(item.checks if isinstance(item, Mutant) else checks)
    others = [_opinion(tool, item, seeds) for tool in TOOLS]
    return Row(item.name, wrong, seeds, sum(map(bool, found)), sorted(meant or checks), others)


def _objections(item: Mutant | Right) -> tuple[str, ...]:
    warned = isinstance(item, Mutant) and item.verdict == "WARN"
    return ("FAIL", "WARN") if warned else ("FAIL",)


def _opinion(tool: Tool, item: Mutant | Right, seeds: int) -> int | None:
    if item.options.get("surrogate"):
        return None  # not a derivative on purpose: they are not asked
    said = [tool.objects(item, seed) for seed in range(seeds)]
    return None if None in said else sum(map(bool, said))


def _rows(workers: int, seeds: int) -> list[Row]:
    """Every row, several at a time; a process is replaced before it holds too many programs."""
    count = len(MUTANTS) + len(RIGHT)
    rows = []
    with get_context("spawn").Pool(workers, maxtasksperchild=8) as pool:
        for row in pool.imap(partial(_row, seeds), range(count)):
            rows.append(row)
            print(f"{len(rows)} of {count}: {row.name}".ljust(90), end="\r", file=sys.stderr)
    print(file=sys.stderr)
    return rows


def _summary(rows: Sequence[Row]) -> Iterator[str]:
    mutants, right = [r for r in rows if r.wrong], [r for r in rows if not r.wrong]
    yield (
        f"| tool | wrong functions found, of {len(mutants)} | right ones flagged, of {len(right)} "
        "| cannot be asked |"
    )
    yield "|---|---|---|---|"
    found, flagged = (sum(r.ours == r.seeds for r in mutants), sum(r.ours > 0 for r in right))
    yield f"| {OURS} | {found} | {flagged} | 0 |"
    for i, tool in enumerate(TOOLS):
        found = sum(r.others[i] == r.seeds for r in mutants)
        flagged = sum(bool(r.others[i]) for r in right)
        unable = sum(r.others[i] is None for r in rows)
        yield f"| {tool.name} | {found} | {flagged} | {unable} |"


def _details(rows: Sequence[Row], title: str) -> Iterator[str]:
    names = [tool.short for tool in TOOLS]
    yield f"| {title} | {OURS} | " + " | ".join(names) + " |"
    yield "|---" * (len(TOOLS) + 2) + "|"
    for row in rows:
        ours = _cell(row.ours, row.seeds) + (f" ({', '.join(row.checks)})" if row.checks else "")
        cells = [_cell(count, row.seeds) for count in row.others]
        yield f"| {row.name} | {ours} | {' | '.join(cells)} |"


def _flagged(row: Row) -> bool:
    return bool(row.ours or any(row.others))


def _cell(count: int | None, seeds: int) -> str:
    if count is None:
        return "n/a"
    return {0: "no", seeds: "yes"}.get(count, f"{count} of {seeds}")


def _tables(rows: Sequence[Row]) -> str:
    parts = (
        _summary(rows),
        _details([r for r in rows if r.wrong], "wrong: found?"),
        _details([r for r in rows if not r.wrong and _flagged(r)], "right: flagged?"),
    )
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def _put(tables: str, file: Path) -> None:
    """Into the file, between its two marks if it has them, else as the whole of it."""
    text = file.read_text() if file.exists() else ""
    pattern = re.compile(f"(?<={BEGIN}\n).*(?={END})", re.DOTALL)
    file.write_text(pattern.sub(lambda _: tables, text) if pattern.search(text) else tables)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="comparing", description=__doc__)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="put the tables there, too")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes at a time")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="with so many, from 0 up")
    chosen = parser.parse_args(arguments)
    tables = _tables(_rows(chosen.workers, chosen.seeds))
    print(tables)
    if chosen.markdown:
        _put(tables, chosen.markdown)


if __name__ == "__main__":
    main()
