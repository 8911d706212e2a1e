"""Compilation for programs that run once: a check makes many, so they are compiled quickly.

Only where the arithmetic is judged in float64. What is compiled as users have it (the dtypes
people train in, and jit itself) goes through plain `jax.jit`.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax

# Of the time that a CPU takes to compile layer_norm's gradient, a quarter; more than half where
# only the last is known. Which options there are changes with the version of XLA, and one that it
# does not know is an error.
QUICK: tuple[dict[str, Any], ...] = (
    {
        "xla_backend_optimization_level": 0,
        "xla_cpu_parallel_codegen_split_count": 1,
        "xla_cpu_use_fusion_emitters": False,
    },
    {"xla_backend_optimization_level": 0},
)


def quickly(f: Callable[..., Any]) -> Callable[..., Any]:
    """f jitted with little optimisation."""
    return jax.jit(f, compiler_options=_options(jax.default_backend()))


@cache
def _options(platform: str) -> dict[str, Any] | None:
    """The quickest that the installed XLA takes; none but for CPUs."""
    return next(filter(_taken, QUICK), None) if platform == "cpu" else None


def _taken(options: dict[str, Any]) -> bool:
    nothing = jax.jit(lambda: 0.0, compiler_options=options)
    try:
        nothing.lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def in_one_program(f: Callable[..., Any], *args: Any) -> Any:
    """f(*args) as one program, quickly compiled; step by step where it cannot be traced whole.

    Under a transformation f sees tracers in place of some arguments only, so that what jit
    refuses may still run.
    """
    try:
        return quickly(f)(*args)
    except Exception:
        return f(*args)
