"""The harness: turns interleaved, ratios paired, wrong contenders not timed."""

import pytest

from jaxprop.benchmarking.timing import WARM_UP, Contender, Entry, measure


def counting(calls: list[str], name: str, seconds: float) -> Contender:
    def run() -> float:
        calls.append(name)
        return seconds

    return Contender(run)


def test_contenders_take_turns_in_alternating_order() -> None:
    calls: list[str] = []
    entry = Entry("e", "a", {name: counting(calls, name, 1.0) for name in ("a", "b")})
    measure(entry, budget=1e-9, least=4)
    turns = calls[2 * WARM_UP :]
    assert turns == ["b", "a", "a", "b", "b", "a", "a", "b"]


def test_ratio_is_the_median_of_paired_ratios() -> None:
    calls: list[str] = []
    entry = Entry("e", "a", {"a": counting(calls, "a", 2.0), "b": counting(calls, "b", 3.0)})
    found = measure(entry, budget=1e-9)
    assert found["b"].ratio == pytest.approx(1.5)
    assert found["b"].quartiles == pytest.approx((1.5, 1.5))
    assert found["a"].ratio == 1.0
    assert found["a"].seconds == 2.0


def test_a_wrong_contender_is_never_run() -> None:
    def run() -> float:
        raise AssertionError("a wrong contender was timed")

    calls: list[str] = []
    entry = Entry("e", "a", {"a": counting(calls, "a", 1.0), "b": Contender(run, "error 0.5")})
    found = measure(entry, budget=1e-9)
    assert found["b"].seconds is None
    assert found["b"].ratio is None
    assert found["a"].turns >= 5


def test_a_wrong_baseline_leaves_the_others_without_ratio() -> None:
    entry = Entry("e", "a", {"a": Contender(lambda: 1.0, "wrong"), "b": Contender(lambda: 2.0)})
    found = measure(entry, budget=1e-9)
    assert (found["b"].seconds, found["b"].ratio) == (2.0, None)


def test_the_budget_bounds_the_turns() -> None:
    entry = Entry("e", "a", {"a": Contender(lambda: 1.0)})
    assert measure(entry, budget=1e-9, least=3)["a"].turns == 3
    assert measure(entry, budget=60.0, most=17)["a"].turns == 17
