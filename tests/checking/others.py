"""Derivatives that nobody here wrote, from packages on the index, as `jaxprop.check` sees them.

    .venv/bin/python -m tests.checking.others

prints each function's verdict and what stands behind it. docs/checking.md says what was found
when every FAIL was looked into.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import optax
from flax.linen import fp8_ops
from jax.experimental.ode import odeint
from jax.scipy.sparse.linalg import cg

from jaxprop.checking import check
from tests.checking.making import each, normal, positive, rows


class Other(NamedTuple):
    """A function of another package, where to check it, and with which options."""

    name: str
    f: Callable[..., Any]
    args: Callable[[], tuple]
    options: dict[str, Any] = {}  # noqa: RUF012  (read only)


def decay(y0: jax.Array, a: jax.Array) -> jax.Array:
    """The solution of y' = -a y, by an adjoint ODE backward."""
    times = jnp.array([0.0, 0.5, 1.0], y0.dtype)
    return odeint(lambda y, t, a: -a * y, y0, times, a, rtol=1e-10, atol=1e-10)


def powers(x: jax.Array, w: jax.Array) -> jax.Array:
    """Five steps of a checkpointed while loop."""

    def step(carry: tuple) -> tuple:
        i, y = carry
        return i + 1, jnp.tanh(w * y)

    start = (jnp.int32(0), x)
    return eqxi.while_loop(lambda c: c[0] < 5, step, start, max_steps=8, kind="checkpointed")[1]


def solved(a: jax.Array, b: jax.Array) -> jax.Array:
    """Conjugate gradients on a positive definite matrix made of a."""
    matrix = a @ a.T + 4 * jnp.eye(len(a), dtype=a.dtype)
    return cg(lambda x: matrix @ x, b, tol=1e-13, maxiter=50)[0]


def _fp8() -> tuple:
    return normal(4, 3), jnp.ones(1, jnp.float32), jnp.zeros(8, jnp.float32)


OTHERS = [
    Other("optax.scale_gradient", partial(optax.scale_gradient, scale=0.3), rows(4, 3),
          {"surrogate": True}),
    Other("flax fp8_ops.in_qdq", partial(fp8_ops.in_qdq, jnp.float32, jnp.float8_e4m3fn), _fp8,
          {"surrogate": True, "dtypes": ("float32",)}),
    Other("flax fp8_ops.out_qdq", partial(fp8_ops.out_qdq, jnp.float32, jnp.float8_e5m2), _fp8,
          {"surrogate": True, "dtypes": ("float32",)}),
    Other("equinox.internal.while_loop", powers, each((3,), (3,))),
    Other("jax.experimental.ode.odeint", decay, lambda: (positive(3), jnp.float32(0.8)),
          {"reference": lambda y0, a: y0 * jnp.exp(
              -a * jnp.array([0.0, 0.5, 1.0], y0.dtype))[:, None], "dtypes": ("float32",)}),
    Other("jax.scipy.sparse.linalg.cg", solved, each((3, 3), (3,)), {"dtypes": ("float32",)}),
    Other("jax.nn.relu", jax.nn.relu, rows(4, 3)),
    Other("jax.nn.silu", jax.nn.silu, rows(4, 3)),
    Other("jax.nn.logsumexp", jax.nn.logsumexp, rows(4, 3)),
    Other("jax.scipy.special.xlogy", jax.scipy.special.xlogy,
          lambda: (positive(4), positive(4, seed=1))),
    Other("jnp.linalg.det", jnp.linalg.det, rows(3, 3), {"dtypes": ("float32",)}),
    Other("jnp.sinc", jnp.sinc, rows(4, 3)),
    Other("optax.safe_norm", partial(optax.safe_norm, min_norm=1e-6), rows(5)),
    Other("optax.ntxent", optax.ntxent, lambda: (normal(6, 4), jnp.array([0, 0, 1, 1, 2, 2]))),
    Other("optax.sigmoid_focal_loss", optax.sigmoid_focal_loss,
          lambda: (normal(6), jnp.array([0.0, 1, 1, 0, 1, 0], jnp.float32))),
]  # fmt: skip


def main() -> None:
    for other in OTHERS:
        try:
            report = check(other.f, *other.args(), **other.options)
        except (TypeError, ValueError) as error:
            print(f"ERROR {other.name}: {error}\n", flush=True)
            continue
        print(f"{report.verdict:5} {other.name}  ({report.seconds:.0f} s)", flush=True)
        if report.verdict != "PASS" or report.notes:
            print("      " + str(report).replace("\n", "\n      ") + "\n", flush=True)


if __name__ == "__main__":
    main()
