"""How every test runs: eight host devices, strict dtype promotion, float64 where it is asked for.

Precision is decided in one way: jax's default (float32) everywhere, as users have it, and
float64 only inside the fixture `x64` (or `jax.enable_x64(True)` around the truth that a
float32 result is held against). A module that checks algebra alone asks for it once, with
`pytestmark = pytest.mark.usefixtures("x64")`.
"""

import itertools
import os
from collections.abc import Iterator

# Read when jax starts its backend, so they come before the first import of jax. A run on
# another platform sets JAX_PLATFORMS itself, as in JAX_PLATFORMS=cuda,cpu.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

# What the library computes must not lean on implicit promotion: its caller's may be strict.
jax.config.update("jax_numpy_dtype_promotion", "strict")

# jax keeps every program it has compiled: a process held 4 GiB after 350 of the slow tests, and in
# CI, where it was to run a thousand, one did not live to the end.
TESTS_BETWEEN_CLEARINGS = 50
finished = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    """Compiled programs are shared by the processes of a run, and by runs: most of the time that
    the tests take is compilation. `--cache-clear` forgets them, `-p no:cacheprovider` has none.
    """
    if not config.pluginmanager.hasplugin("cacheprovider"):
        return
    jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture
def x64() -> Iterator[None]:
    """Float64 for the algebra: arrays and Python numbers are float64 unless they say more."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def programs_dropped() -> Iterator[None]:
    """A check compiles a hundred programs and more that no other test runs."""
    yield
    jax.clear_caches()


def pytest_runtest_logfinish() -> None:
    if next(finished) % TESTS_BETWEEN_CLEARINGS == 0:
        jax.clear_caches()


def pytest_make_parametrize_id(val: object) -> str | None:
    """Ids that are the same in every process: pytest-xdist collects in several."""
    if isinstance(val, (set, frozenset)):
        return "{" + ", ".join(sorted(map(str, val))) + "}"
    if callable(val) and " at 0x" in repr(val):
        return getattr(val, "__name__", type(val).__name__)
    return None
