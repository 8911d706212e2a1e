"""Tests of hand-written VJPs for pytest: one per function, check, dtype and shape.

    test_vjps = vjp_tests([my_rule, (my_function, make_args)])

in a test file makes tests such as `test_vjps[my_function-numerics-bfloat16]`, to be chosen with
`-k "my_function and numerics"`. `jaxprop_pytest` has the plugin's option and marker.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import jax
import pytest

from jaxprop.checking.check import CHECKS, DTYPES, by_options, check
from jaxprop.checking.report import Finding, Report, first_of_each
from jaxprop.rule import Case, Rule

# A set of arguments, or a function that makes it: called when a test runs, not before.
Arguments = tuple | Callable[[], tuple]
# What is checked: a rule at its own cases, or a function and its arguments.
Entry = Rule | tuple[Callable[..., Any], Arguments]
# The checks that report under another name than that of their tests.
FILED_AS = {"finite differences": "algebra", "meshes": "transforms"}
DRAWN = "drawn shapes"
# Where many shapes are compiled for: float64, and the dtype in which compilers go wrong.
DRAWN_CHECKS = ("algebra", "numerics")
DRAWN_DTYPES = ("float32",)


class VjpWarning(UserWarning):
    """What a check has doubts about (verdict WARN) without failing."""


class Key(NamedTuple):
    """What a test tells of: a check, and where it is told apart, a given place and a dtype."""

    check: str
    place: str = ""
    dtype: str = ""


@dataclass(frozen=True, eq=False)
class Function:
    """One function to check, and where: the report that its tests share is made once."""

    name: str
    f: Callable[..., Any]
    arguments: Arguments
    shapes: Mapping[str, Arguments]
    edges: Mapping[str, Arguments]


class Part(NamedTuple):
    """The parameter of one test."""

    function: Function
    key: Key


def vjp_tests(
    functions: Iterable[Entry] | Mapping[str, Entry],
    *,
    checks: Sequence[str] | None = None,
    dtypes: Sequence[str] = DTYPES,
    shapes: Sequence[Arguments] | Mapping[str, Arguments] = (),
    edges: Sequence[Arguments] | Mapping[str, Arguments] = (),
    draw: Any = None,
    examples: int = 10,
    seed: int = 0,
    **options: Any,
) -> Callable[..., None]:
    """Make a test function, parametrised over functions, checks, dtypes and shapes.

    Assign it to a name that pytest collects. What a function's tests need is checked once, when
    the first of them runs; only what the selected tests ask for.

    Args:
        functions: Rules (the catalogue, say), which are checked at their own cases; pairs
            (function, make_args), where make_args() returns a tuple of arguments; or a dict
            of either by the name that the tests shall have. Rules' cases are traced at
            collection for their names, nothing is computed.
        checks: names of checks, as in a report; all where None.
        dtypes: in which the numerics are judged.
        shapes, edges: further sets of arguments, or functions that make them, each with tests
            of its own, named by the dict's key, the function's name or the position.
        draw: a hypothesis strategy of tuples of arguments, such as
            `jaxprop.checking.drawing.arguments(("B", 3), (3, "N"))`: one more test, in which
            the algebra and the numerics in float32 are checked wherever it draws.
        examples: how many it draws.
        seed: of every random number; `--vjp-seed` overrides it.
        options: the other options of `jaxprop.check`, for all of these functions: reference,
            intended_zero, surrogate, order, budget.

    Returns:
        The test function. A FAIL fails with the findings as its text, a WARN is a
        `VjpWarning`, and what cannot be checked is skipped with the reason.

    Raises:
        TypeError: where something is neither a Rule with cases nor a pair.
        ValueError: where two functions have one name, or there is no check of some name.
    """
    chosen = _chosen(checks)
    made = list(_functions(functions, _named(shapes), _named(edges)))
    _check_names([function.name for function in made])
    parts = [
        Part(function, key)
        for function in made
        for key in [*_keys(function, chosen, dtypes), *([Key(DRAWN)] if draw is not None else [])]
    ]
    reports: dict[tuple[Function, int], Report] = {}
    options |= {"dtypes": tuple(dtypes)}

    @pytest.mark.vjp
    @pytest.mark.parametrize("vjp", [pytest.param(part, id=_id(part)) for part in parts])
    def test(vjp: Part, request: pytest.FixtureRequest) -> None:
        given = request.config.getoption("--vjp-seed", default=None)
        number = seed if given is None else given
        if vjp.key.check == DRAWN:
            _draw(vjp.function, draw, examples, options | {"seed": number, "dtypes": DRAWN_DTYPES})
            return
        key = (vjp.function, number)
        if key not in reports:
            wanted = _selected(vjp.function, request.session.items)
            reports[key] = _report(vjp.function, wanted, options | {"seed": number})
        keys = [part.key for part in parts if part.function is vjp.function]
        _tell(_only(reports[key], vjp, keys))

    return test


def _chosen(checks: Sequence[str] | None) -> list[str]:
    """The checks that tests are made for; those on meshes are part of the transformations."""
    unknown = [name for name in checks or () if name not in CHECKS]
    if unknown:
        raise ValueError(
            f"vjp_tests: checks must be among {', '.join(CHECKS)}; got {unknown[0]!r}. Leave it "
            "out."
        )
    names = [FILED_AS.get(name, name) for name in (CHECKS if checks is None else checks)]
    return list(dict.fromkeys(names))


def _functions(
    entries: Iterable[Entry] | Mapping[str, Entry],
    shapes: dict[str, Arguments],
    edges: dict[str, Arguments],
) -> Iterator[Function]:
    named = entries.items() if isinstance(entries, Mapping) else [("", e) for e in entries]
    for name, entry in named:
        if isinstance(entry, Rule):
            yield from _of_a_rule(name or entry.name, entry, shapes, edges)
        elif isinstance(entry, tuple) and len(entry) == 2 and callable(entry[0]):
            f, arguments = entry
            name = name or getattr(f, "__name__", type(f).__name__)
            yield Function(name, f, arguments, shapes, edges)
        else:
            raise TypeError(
                "vjp_tests: each entry must be a Rule with cases or a pair (function, make_args), "
                f"got {type(entry).__name__} ({entry!r}). Add a function that returns a tuple of "
                "arguments."
            )


def _of_a_rule(
    name: str, rule: Rule, shapes: dict[str, Arguments], edges: dict[str, Arguments]
) -> Iterator[Function]:
    """A rule at its cases: for each setting of the options the first case, and all others."""
    cases = _traced_cases(rule)
    if not cases:
        raise TypeError(
            f"vjp_tests: {rule.name} has no cases to be checked at. Give the pair ({rule.name}, "
            "make_args), or the rule cases."
        )
    arguments = cache(lambda: [case.args for case in rule.cases()])
    for options, group in by_options(cases):

        def at(case: Case) -> Arguments:
            return lambda: arguments()[case.args[0]]

        first, *others = [case for case in group if not case.edge] or group[:1]
        yield Function(
            "-".join([name, *(f"{option}={value}" for option, value in options.items())]),
            rule.bind(**options) if options else rule,
            at(first),
            {case.name: at(case) for case in others} | shapes,
            {case.name: at(case) for case in group if case.edge} | edges,
        )


def _traced_cases(rule: Rule) -> list[Case]:
    """A rule's cases, their position in the place of their arguments; made without computing."""
    found: list[Case] = []

    def trace() -> None:
        found.extend(rule.cases())

    try:
        jax.eval_shape(trace)
    except jax.errors.JAXTypeError:  # they look into their arrays
        found = list(rule.cases())
    names = [case.name for case in found]
    return [
        case._replace(name=_unlike(names, i), args=(i,), given=None) for i, case in enumerate(found)
    ]


def _unlike(names: Sequence[str], i: int) -> str:
    """A name that no other has."""
    return names[i] if names.count(names[i]) == 1 else f"{names[i]} {i}"


def _named(given: Sequence[Arguments] | Mapping[str, Arguments]) -> dict[str, Arguments]:
    """Arguments by the name that their tests have."""
    if isinstance(given, Mapping):
        return dict(given)
    names = [getattr(arguments, "__name__", "<lambda>") for arguments in given]
    return {
        str(i) if name == "<lambda>" else name: arguments
        for i, (name, arguments) in enumerate(zip(names, given, strict=True))
    }


def _check_names(names: Sequence[str]) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(
            f"vjp_tests: every function must have a name of its own, got {twice[0]!r} twice. Give "
            "a dict from name to function."
        )


def _keys(function: Function, checks: Sequence[str], dtypes: Sequence[str]) -> Iterator[Key]:
    """The tests of one function, in the order of a report."""
    in_float32 = ["float32"] if "float32" in dtypes else []
    for name in checks:
        if name == "numerics":
            yield from (Key(name, dtype=dtype) for dtype in dtypes)
            continue
        yield Key(name)
        if name == "contract":
            yield from (Key(name, dtype=dtype) for dtype in dtypes)
        if name == "edges":
            yield from (Key(name, dtype=dtype) for dtype in in_float32)
            yield from (Key(name, place) for place in function.edges)
        if name == "shapes":
            for place in function.shapes:
                yield from (Key(name, place, dtype) for dtype in ["", *in_float32])


def _id(part: Part) -> str:
    words = [part.function.name, *part.key]
    return "-".join(re.sub(r"[^\w.=-]+", "_", word) for word in words if word)


def _selected(function: Function, items: Iterable[pytest.Item]) -> list[str]:
    """The checks that the selected tests of a function need."""
    parameters = [getattr(item, "callspec", None) for item in items]
    parts = [p.params.get("vjp") for p in parameters if p is not None]
    tests = {part.key.check for part in parts if getattr(part, "function", None) is function}
    return [name for name in CHECKS if FILED_AS.get(name, name) in tests]


def _report(function: Function, checks: Sequence[str], options: Mapping[str, Any]) -> Report:
    report = check(
        function.f,
        *_made(function.arguments),
        shapes=[_made(arguments) for arguments in function.shapes.values()],
        edges=[_made(arguments) for arguments in function.edges.values()],
        checks=checks,
        **options,
    )
    return replace(report, name=function.name)


def _made(arguments: Arguments) -> tuple:
    found = arguments() if callable(arguments) else arguments
    if not isinstance(found, tuple):
        raise TypeError(
            f"vjp_tests: arguments must be a tuple, got {type(found).__name__}. A single argument "
            "x is (x,)."
        )
    return found


def _only(report: Report, part: Part, keys: Sequence[Key]) -> Report:
    """The part of a report that one test tells."""
    outcomes = [o for o in report.outcomes if _filed(o, part.function, keys) == part.key]
    return replace(report, outcomes=tuple(outcomes), notes=())


def _filed(outcome: Finding, function: Function, keys: Sequence[Key]) -> Key:
    """The test that an outcome belongs to; no outcome is left without one."""
    name = FILED_AS.get(outcome.check, outcome.check)
    words = outcome.transform.split(", ")
    given = re.fullmatch(r"given (shapes|edge) (\d+)", words[0])
    places = list(function.shapes if name == "shapes" else function.edges)
    place = places[int(given[2])] if given else ""
    dtype = words[-1]
    wanted = [Key(name, place, dtype), Key(name, place), Key(name, dtype=dtype), Key(name)]
    same = [key for key in keys if key.check == name]
    return next((key for key in wanted if key in keys), (same or list(keys))[0])


def _tell(report: Report) -> None:
    """Fail, warn, skip or pass, as the outcomes say."""
    verdicts = {outcome.verdict for outcome in report.outcomes}
    if "FAIL" in verdicts:
        pytest.fail(_text(report), pytrace=False)
    if "WARN" in verdicts:
        warnings.warn(_text(report), VjpWarning, stacklevel=2)
    if verdicts <= {"SKIP"}:
        reasons = dict.fromkeys(outcome.message for outcome in report.outcomes)
        pytest.skip("; ".join(reasons) or "there is nothing to check of this kind")


def _text(report: Report) -> str:
    """The findings, the first of them in pytest's summary line too."""
    count = f"{len(report.findings)} of {len(report.outcomes)} outcomes"
    last = f"{report.name}: {count}, in {report.seconds:.1f} s with seed {report.seed}"
    return "\n".join([*map(str, first_of_each(report.findings)), last])


def _draw(function: Function, strategy: Any, examples: int, options: Mapping[str, Any]) -> None:
    """Check wherever a hypothesis strategy draws; it makes a failure as small as it can."""
    import hypothesis

    @hypothesis.settings(max_examples=examples, deadline=None)
    @hypothesis.given(strategy)
    def at(args: tuple) -> None:
        shapes = [getattr(leaf, "shape", leaf) for leaf in jax.tree.leaves(args)]
        hypothesis.note(f"arguments of shapes {', '.join(map(str, shapes))}")
        report = check(function.f, *_made(args), checks=DRAWN_CHECKS, **options)
        if report.verdict == "FAIL":
            raise AssertionError(_text(report))

    try:
        at()
    except AssertionError as error:
        text = "\n".join([str(error), "", *getattr(error, "__notes__", ())])
        raise pytest.fail.Exception(text, pytrace=False) from None
