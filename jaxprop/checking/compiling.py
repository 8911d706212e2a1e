"""Compilation for programs that run once: a check makes many, so they are compiled quickly.

Only where the arithmetic is judged in float64. What is compiled as users have it (the dtypes
people train in, and jit itself) goes through plain `jax.jit`.
"""

from collections.abc import Callable
from typing import Any

import jax


def quickly(f: Callable[..., Any]) -> Callable[..., Any]:
    """f jitted with little optimisation; half the time to compile on a CPU."""
    on_cpu = jax.default_backend() == "cpu"
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0} if on_cpu else None)


def in_one_program(f: Callable[..., Any], *args: Any) -> Any:
    """f(*args) as one program, quickly compiled; step by step where it cannot be traced whole.

    Under a transformation f sees tracers in place of some arguments only, so that what jit
    refuses may still run.
    """
    try:
        return quickly(f)(*args)
    except Exception:
        return f(*args)
