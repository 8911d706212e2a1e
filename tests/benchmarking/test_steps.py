"""The step's entries: both ways checked against float64 before anything is timed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop.benchmarking import steps
from jaxprop.benchmarking.timing import measure


@pytest.mark.slow
def test_both_ways_are_right_and_by_hand_needs_no_more_memory() -> None:
    entry = steps.step_entry(32, 16)
    assert set(entry.contenders) == {"automatic", "by hand"}
    assert [c.error for c in entry.contenders.values()] == ["", ""]
    automatic, by_hand = (entry.contenders[name] for name in ("automatic", "by hand"))
    assert by_hand.temp_bytes <= automatic.temp_bytes
    assert by_hand.peak_bytes <= automatic.peak_bytes
    assert measure(entry, budget=1e-9)["by hand"].seconds > 0


@pytest.mark.slow
def test_a_wrong_gradient_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    right = steps.jaxprop.value_and_grad

    def wrong(J):
        def run(*args):
            value, dparams = right(J)(*args)
            return value, jax.tree.map(lambda d: 1.01 * d, dparams)

        return run

    monkeypatch.setattr(steps.jaxprop, "value_and_grad", wrong)
    entry = steps.step_entry(32, 16)
    assert entry.contenders["by hand"].error.startswith("relative error 0.01")
    assert entry.contenders["automatic"].error == ""


@pytest.mark.slow
def test_examples_keep_clear_of_kinks_where_float32_may_differ() -> None:
    J = steps._cost(512)
    params = J.network.init(jax.random.key(0), (256, steps.FEATURES))
    # Among the first draws there is an example whose float32 pre-activation has the other sign.
    drawn = jax.random.normal(jax.random.key(1), (256, steps.FEATURES))
    assert np.min(steps.distance_from_kinks(J, params, drawn)) < steps.KINK
    kept = steps._examples(J, params, 256)
    assert kept.shape == drawn.shape
    assert np.min(steps.distance_from_kinks(J, params, kept)) > steps.KINK


@pytest.mark.slow
def test_a_step_that_keeps_its_state_is_checked_too() -> None:
    entry = steps.step_entry(32, 16, donate=False)
    assert entry.name == "step-undonated-width32-batch16"
    assert [c.error for c in entry.contenders.values()] == ["", ""]


def test_relative_error_is_per_parameter() -> None:
    truth = {"small": jnp.array([1e-3]), "large": jnp.array([1e3])}
    off = {"small": jnp.array([1.1e-3]), "large": jnp.array([1e3])}
    assert steps.relative_error(off, truth) == pytest.approx(0.1)
