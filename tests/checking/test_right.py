"""No right function may fail, whatever the seed.

    CHECK_SEEDS=20 .venv/bin/python -m pytest -m slow tests/checking/test_right.py

takes twenty seeds, as docs/checking.md reports them; CI takes one.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxprop.checking import check
from tests.checking.making import Right
from tests.checking.right import RIGHT

SEEDS = range(int(os.environ.get("CHECK_SEEDS", "1")))
# The checks whose verdict the random numbers could change; the others run at the first seed.
SEEDED = ("algebra", "linearity", "numerics", "edges")
# Those that take a second or two run by default.
QUICK = {
    "relu: a half at zero",
    "a mask whose zero is meant",
}


def ids(right: Right) -> str:
    return right.name.replace(" ", "_")


def assert_right(right: Right, seed: int, checks: Sequence[str] | None = None) -> None:
    report = check(right.f, *right.args(), **right.options, seed=seed, checks=checks)
    assert report.verdict != "FAIL", str(report)


@pytest.mark.parametrize("right", [r for r in RIGHT if r.name in QUICK], ids=ids)
def test_a_right_function_does_not_fail(right: Right) -> None:
    assert_right(right, seed=0)


@pytest.fixture(scope="module")
def programs_kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Compiled programs are kept on disk: one seed after another makes the same ones."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    yield Path(options["jax_compilation_cache_dir"])
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.mark.slow
@pytest.mark.usefixtures("programs_kept")
@pytest.mark.parametrize("right", RIGHT, ids=ids)
def test_a_right_function_fails_with_no_seed(right: Right) -> None:
    assert_right(right, SEEDS[0])
    for seed in SEEDS[1:]:
        assert_right(right, seed, SEEDED)


def test_there_are_enough_of_them() -> None:
    names = [right.name for right in RIGHT]
    assert len(set(names)) == len(names) >= 45
    assert set(names) > QUICK
