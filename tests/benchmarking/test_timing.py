"""The harness: turns interleaved, ratios paired, wrong contenders not timed."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop.benchmarking.timing import Contender, Entry, measure, wait_until_idle


def counting(calls: list[str], name: str, seconds: float) -> Contender:
    def run() -> float:
        calls.append(name)
        return seconds

    return Contender(run)


def test_contenders_take_turns_in_alternating_order() -> None:
    calls: list[str] = []
    entry = Entry("e", ("a",), {name: counting(calls, name, 1.0) for name in ("a", "b")})
    measure(entry, budget=1e-9, least=4)
    turns = calls[2 * entry.warm_up :]
    assert turns == ["b", "a", "a", "b", "b", "a", "a", "b"]


def test_ratio_is_the_median_of_paired_ratios() -> None:
    calls: list[str] = []
    entry = Entry("e", ("a",), {"a": counting(calls, "a", 2.0), "b": counting(calls, "b", 3.0)})
    found = measure(entry, budget=1e-9)
    assert found["b"].ratios["a"] == pytest.approx((1.5, 1.5, 1.5))
    assert found["a"].ratios == {}
    assert found["a"].seconds == 2.0


def test_ratios_are_taken_to_every_baseline() -> None:
    seconds = {"a": 2.0, "b": 4.0, "c": 1.0}
    contenders = {name: counting([], name, s) for name, s in seconds.items()}
    found = measure(Entry("e", ("a", "b"), contenders), budget=1e-9)
    medians = {name: {b: r.median for b, r in t.ratios.items()} for name, t in found.items()}
    assert medians == {"a": {"b": 0.5}, "b": {"a": 2.0}, "c": {"a": 0.5, "b": 0.25}}


def test_a_function_against_itself_comes_out_at_one() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(200, 200)), jnp.float32)
    product = jax.jit(lambda x: x @ x)

    def run() -> None:
        jax.block_until_ready(product(x))

    same = Contender(run)
    ratio = measure(Entry("e", ("a",), {"a": same, "b": same}), 0.5)["b"].ratios["a"]
    assert ratio.low <= 1.0 <= ratio.high


def test_a_wrong_contender_is_never_run() -> None:
    def run() -> float:
        raise AssertionError("a wrong contender was timed")

    calls: list[str] = []
    entry = Entry("e", ("a",), {"a": counting(calls, "a", 1.0), "b": Contender(run, "error 0.5")})
    found = measure(entry, budget=1e-9)
    assert found["b"].seconds is None
    assert found["b"].ratios == {}
    assert len(found["a"].samples) >= 5


def test_a_wrong_baseline_leaves_the_others_without_ratio() -> None:
    entry = Entry("e", ("a",), {"a": Contender(lambda: 1.0, "wrong"), "b": Contender(lambda: 2.0)})
    found = measure(entry, budget=1e-9)
    assert (found["b"].seconds, found["b"].ratios) == (2.0, {})


def test_the_budget_bounds_the_turns() -> None:
    entry = Entry("e", ("a",), {"a": Contender(lambda: 1.0)})
    assert len(measure(entry, budget=1e-9, least=3)["a"].samples) == 3
    assert len(measure(entry, budget=60.0, most=17)["a"].samples) == 17


def test_waits_for_threads_that_still_work() -> None:
    until = time.perf_counter() + 0.2

    def spin() -> None:
        while time.perf_counter() < until:
            pass

    worker = threading.Thread(target=spin)
    worker.start()
    wait_until_idle()
    assert not worker.is_alive()


@pytest.mark.parametrize(("settle", "waits"), [(True, 6), (False, 0)])
def test_settles_before_each_run_where_the_entry_and_the_caller_ask(
    settle: bool, waits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[int] = []
    monkeypatch.setattr("jaxprop.benchmarking.timing.wait_until_idle", lambda: waited.append(1))
    contenders = {"a": counting([], "a", 1.0), "b": counting([], "b", 1.0)}
    entry = Entry("e", ("a",), contenders, warm_up=0, settle=True)
    measure(entry, budget=1e-9, least=3, settle=settle)
    assert len(waited) == waits
