"""What a check is run with: the options, and how precisely f and its reference compute."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.checking.comparison import as_float64
from jaxprop.checking.compiling import quickly
from jaxprop.checking.domains import is_simplex, keeper
from jaxprop.checking.finite_differences import Differences, Estimate
from jaxprop.checking.inlining import equations
from jaxprop.checking.probing import Answer, Cotangent, answer, normal
from jaxprop.checking.subject import PyTree, Subject, floats, in_dtype, is_float, labels, on_device

# What agreement to ask of arithmetic in each precision, relative to the leaf's largest value.
TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "float16": 2e-2, "bfloat16": 4e-2}
# What finite differences can tell: in float64, and of a function that rounds to float32 inside.
BY_DIFFERENCES = 1e-6
BY_COARSE_DIFFERENCES = 3e-3


@dataclass(frozen=True)
class Precision:
    """The dtype that a function is run in to judge its algebra, and the coarsest one inside.

    run: float64, or float32 for a function that raises in float64.
    inside: the coarsest dtype that float64 values are rounded to on the way.
    loops: whether it loops until something holds, which in a coarser dtype or at extreme values
        may be never.
    """

    run: Any
    inside: Any
    loops: bool

    @property
    def eps(self) -> float:
        return float(jnp.finfo(self.inside).eps)


@dataclass(frozen=True)
class Plan:
    """The options of one `check`, and what was found of the function before the checks run.

    wrong: the leaves that the algebra found wrong; no excuse is looked for at their edges.
    truth: the reference or, for a surrogate, the function whose gradient is the stated one;
        None where there is neither, and finite differences are the truth.
    precision, truth_precision: of f and of truth.
    """

    seed: int
    order: int
    dtypes: tuple[Any, ...]
    edges: tuple[Subject, ...]
    shapes: tuple[Subject, ...]
    intended_zero: frozenset[str]
    surrogate: bool
    budget: float | None
    truth: Callable[..., PyTree] | None
    precision: Precision
    truth_precision: Precision
    wrong: set[str] = field(default_factory=set)
    compiled: dict[tuple[Callable, bool], Callable] = field(default_factory=dict)
    traced: dict[Hashable, PyTree] = field(default_factory=dict)
    differences: dict[Any, Differences] = field(default_factory=dict)

    @property
    def tolerance(self) -> float:
        """What the algebra is held to."""
        if self.truth is None:
            return 3 * self.trust
        coarsest = max(self.precision.eps, self.truth_precision.eps)
        name = next(n for n in TOLERANCE if float(jnp.finfo(n).eps) >= coarsest)
        return TOLERANCE[name]

    @property
    def trust(self) -> float:
        """The error, of the leaf's largest value, up to which a finite difference is believed."""
        return BY_DIFFERENCES if self.precision.inside == jnp.float64 else BY_COARSE_DIFFERENCES

    @property
    def unstated(self) -> bool:
        """Whether f is a surrogate and nobody says of what: there is no gradient to hold it to."""
        return self.surrogate and self.truth is None

    def shapes_of(self, f: Callable[..., PyTree], args: tuple[PyTree, ...]) -> PyTree:
        """`jax.eval_shape(f, *args)`, traced once per function, shapes and dtypes."""
        leaves, structure = jax.tree.flatten(args)
        types = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        key = (f, str(structure), types, jnp.zeros(()).dtype)
        if key not in self.traced:
            self.traced[key] = jax.eval_shape(f, *args)
        return self.traced[key]

    def run(
        self,
        f: Callable[..., PyTree],
        args: tuple[PyTree, ...],
        g: Cotangent,
        as_users_do: bool = False,
    ) -> Answer:
        """`answer`, compiled once per function, shape and dtype; in float64, on the host.

        Quickly compiled, unless it is to be compiled as users have it.
        """
        key = (f, as_users_do)
        if key not in self.compiled:
            compile = jax.jit if as_users_do else quickly
            self.compiled[key] = compile(lambda args, g: answer(f, args, g))
        return on_host(self.compiled[key](args, g))

    def widened(self, args: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        """The arguments as f takes them where its algebra is judged; inside enable_x64.

        Probabilities that summed to 1 in a coarser dtype do so again.
        """
        wide = in_dtype(args, self.precision.run)
        return jax.tree.map(_summing_to_one, wide)

    def expected(self, s: Subject, args: tuple[PyTree, ...], g: Cotangent) -> Answer:
        """The true value and cotangents, in float64; nan where nothing is known."""
        with jax.enable_x64(True):
            if self.truth is None:
                found = self.differences_at(s, args)
                values, cotangents = (
                    found.values(),
                    [_trusted(e, self.trust) for e in found.gradients(g)],
                )
            else:
                args = in_dtype(args, self.truth_precision.run)
                y = floats(self.shapes_of(self.truth, args))
                g = [x.astype(leaf.dtype) for x, leaf in zip(g, y, strict=True)]
                values, cotangents = self.run(self.truth, args, g)
        return Answer(values, self.with_intended_zeros(s, cotangents))

    def with_intended_zeros(self, s: Subject, cotangents: Sequence[Any]) -> list[Any]:
        """The cotangents of the arguments' leaves, zero where zero is meant."""
        return [
            np.zeros(np.shape(d)) if self.is_intended_zero(label) else d
            for label, d in zip(labels(s.names, s.args), cotangents, strict=True)
        ]

    def differences_at(self, s: Subject, args: tuple[PyTree, ...]) -> Differences:
        """Finite differences of f, whose columns serve every cotangent at the same arguments."""
        key = (s.call, tuple(np.asarray(x).tobytes() for x in floats(args)))
        if key not in self.differences:
            self.differences.clear()
            self.differences[key] = Differences(s.call, self.widened(args), self.seed)
        return self.differences[key]

    def is_intended_zero(self, label: str) -> bool:
        return any(label == name or label.startswith(f"{name}[") for name in self.intended_zero)

    def random_g(self, s: Subject, args: tuple[PyTree, ...], draw: int = 0) -> Cotangent:
        return normal(self.seed + draw, floats(self.shapes_of(s.call, args)))


def _summing_to_one(leaf: jax.Array) -> jax.Array:
    x = np.asarray(leaf) if is_float(leaf) else None
    return leaf if x is None or not is_simplex(x) else on_device(keeper(x)(x), leaf.dtype)


def on_host(found: Answer) -> Answer:
    return Answer([as_float64(y) for y in found.values], [as_float64(d) for d in found.cotangents])


def _trusted(estimate: Estimate, trust: float) -> np.ndarray:
    """The estimates that their own error does not put in doubt."""
    scale = float(np.nanmax(np.abs(estimate.value), initial=0.0)) or 1.0
    return np.where(estimate.error <= trust * scale, estimate.value, np.nan)


def precision_of(f: Callable[..., PyTree], args: tuple[PyTree, ...]) -> Precision | None:
    """In which dtype f's gradient can be taken, and what it rounds to inside; None if in none."""
    for dtype in ("float64", "float32"):
        with jax.enable_x64(True):
            wide = in_dtype(args, dtype)
            try:
                y = jax.eval_shape(f, *wide)
                g = [on_device(np.ones(leaf.shape), leaf.dtype) for leaf in floats(y)]
                closed = jax.make_jaxpr(lambda args, g: answer(f, args, g))(wide, g)
            except Exception:
                continue
        loops = any(eqn.primitive.name == "while" for eqn in equations(closed.jaxpr))
        return Precision(jnp.dtype(dtype), _coarsest(closed.jaxpr, jnp.dtype(dtype)), loops)
    return None


def _coarsest(jaxpr: Any, dtype: Any) -> Any:
    """The coarsest dtype that a floating value is converted to, from a finer one."""
    rounded = [dtype]
    for eqn in equations(jaxpr):
        if eqn.primitive.name == "convert_element_type":
            before, after = eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype
            if jnp.issubdtype(before, jnp.floating) and jnp.issubdtype(after, jnp.floating):
                rounded.append(after)
    named = [d for d in rounded if jnp.dtype(d).name in TOLERANCE]
    return max(named, key=lambda d: float(jnp.finfo(d).eps))
