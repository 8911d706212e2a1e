"""A point to check at: arguments and a cotangent, and what a right gradient may be there.

A difference from the reference is not always a fault. Near a kink, any subgradient is right;
where the problem is ill-conditioned, rounding alone moves the gradient; and at an extreme
value the reference itself may be the one that is off. Each is looked into only where the
numbers differ, so that right functions cost nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.checking.comparison import Difference, largest
from jaxprop.checking.plan import Plan
from jaxprop.checking.probing import Answer, Cotangent
from jaxprop.checking.subject import PyTree, Subject, floats, in_dtype, is_float, on_device

# How far off the neighbours of a point lie that tell a kink from a smooth place.
NEAR = 1e-7
# So many of them, and more where those leave it open: of several tied entries each may get all.
NEIGHBOURS = (8, 64)
# So many of the worst elements are looked into one by one.
ONE_BY_ONE = 16
# Rounding errors are a multiple of what rounding the inputs alone would do.
ROUNDINGS = 6
MULTIPLE = 8.0
# A change beyond this share of the largest value is looked into once more, with a wider step.
LARGE = 1e-3
# As good as infinite, and its square is still a number.
FAR = 1e30
WIDER = 64


@dataclass(frozen=True)
class Point:
    """Arguments, in the dtype that f is given them in, and a cotangent."""

    s: Subject
    plan: Plan
    args: tuple[PyTree, ...]
    g: Cotangent

    @cached_property
    def expected(self) -> Answer:
        return self.plan.expected(self.s, self.args, self.g)

    @cached_property
    def leaves(self) -> list[np.ndarray]:
        return [np.asarray(x, np.float64) for x in floats(self.args)]

    def noise(self, eps: float) -> Answer:
        """What rounding the arguments and g to eps changes in value and cotangents.

        A jump is no rounding: at a kink the change is as large for a wider step, and then it is
        left to those who look into kinks.
        """
        if self.plan.truth is None:
            return Answer(_zeros(self.expected.values), _zeros(self.expected.cotangents))
        with jax.enable_x64(True):
            worst = self._change(eps)
            large = [w > LARGE * largest(e) for w, e in zip(worst, self._flat, strict=True)]
            if any(map(np.any, large)):
                triples = zip(worst, self._change(WIDER * eps), large, strict=True)
                worst = [np.where(big & (wide < 2 * w), 0, w) for w, wide, big in triples]
            own = self._own_rounding()
        count = len(self.expected.values)
        return Answer(
            worst[:count], [np.fmax(w, d) for w, d in zip(worst[count:], own, strict=True)]
        )

    def _change(self, eps: float) -> list[np.ndarray]:
        """The largest change of each value and cotangent, the arguments and g moved by eps."""
        random = np.random.default_rng(self.plan.seed)

        def rounded(x: Any) -> Any:
            if not is_float(x):
                return x
            factor = 1 + eps * random.choice([-1.0, 1.0], size=x.shape)
            return on_device(np.asarray(x, np.float64) * factor, np.float64)

        worst = _zeros(self._flat)
        for _ in range(ROUNDINGS):
            args = jax.tree.map(rounded, self.args)
            moved = self.plan.expected(self.s, args, [rounded(x) for x in self.g])
            pairs = zip((*moved.values, *moved.cotangents), self._flat, worst, strict=True)
            worst = [np.fmax(w, np.abs(a - b)) for a, b, w in pairs]
        return worst

    def _own_rounding(self) -> list[np.ndarray]:
        """What the truth rounds by itself, where its terms cancel: it should be linear in g."""
        thirds = [on_device(np.asarray(x, np.float64) / 3, np.float64) for x in self.g]
        found = self.plan.expected(self.s, self.args, thirds).cotangents
        return [np.abs(3 * d - e) for d, e in zip(found, self.expected.cotangents, strict=True)]

    @property
    def _flat(self) -> list[np.ndarray]:
        return [*self.expected.values, *self.expected.cotangents]

    @property
    def infinite(self) -> bool:
        return any(np.isinf(x).any() for x in self.leaves)

    def is_limit(self, leaf: int, d: Difference, tolerance: float) -> np.ndarray:
        """Which elements are what the true gradient tends to where infinite entries grow."""
        with jax.enable_x64(True):
            args = jax.tree.map(
                lambda x: on_device(np.clip(x, -FAR, FAR), np.float64) if is_float(x) else x,
                in_dtype(self.args, jnp.float64),
            )
            limit = self.plan.expected(self.s, args, self.g).cotangents[leaf]
        return np.abs(d.got - limit) <= tolerance * d.scale

    def at_kinks(self, leaf: int, d: Difference, slack: float, near: float = NEAR) -> np.ndarray:
        """Which wrong elements are another subgradient of a kink, as a mask: all or none.

        Element by element, the value must lie between the gradients on both sides; and along
        directions in which the function is smooth (all tied entries shifted together), the
        gradient as a whole must have the right slope.
        """
        h = near * (largest(self.leaves[leaf]) if np.any(self.leaves[leaf]) else 1.0)
        some = _worst_of(d)
        right = (
            self._jumps(leaf, some[0], h, max(1e-6 * d.scale, slack))
            and any(self._between(leaf, d, some, h, slack, count) for count in NEIGHBOURS)
            and all(self._right_slope(leaf, d, v, h, slack) for v in _shifts(d))
        )
        return d.wrong if right else np.zeros(d.wrong.shape, bool)

    def _jumps(self, leaf: int, i: int, h: float, least: float) -> bool:
        """Whether the true gradient of one element is another one nearby: few points will tell."""
        around = [
            *(x.flat[i] for x in self._hull(leaf, h, NEIGHBOURS[0])),
            *self._sides(leaf, i, h),
        ]
        return bool(max(around) - min(around) > least)

    def _between(
        self, leaf: int, d: Difference, some: np.ndarray, h: float, slack: float, count: int
    ) -> bool:
        """Whether all of some elements lie between the gradients at so many points nearby."""
        hull, closer_hull = self._hull(leaf, h, count), self._hull(leaf, h / 16, count)

        def excused(i: int) -> bool:
            bounds = [*(x.flat[i] for x in hull), *self._sides(leaf, i, h)]
            closer = [*(x.flat[i] for x in closer_hull), *self._sides(leaf, i, h / 16)]
            return _between(d.got.flat[i], bounds, closer, slack, d.scale)

        return all(map(excused, some))

    def _gradient(self, leaf: int, move: np.ndarray) -> np.ndarray:
        """The true cotangent of one leaf, that leaf moved."""
        return self._moved(leaf, move).expected.cotangents[leaf]

    def _moved(self, leaf: int, move: np.ndarray) -> "Point":
        with jax.enable_x64(True):
            wide = in_dtype(self.args, jnp.float64)
            leaves, structure = jax.tree.flatten(wide)
            position = [i for i, x in enumerate(leaves) if is_float(x)][leaf]
            leaves[position] = on_device(self.leaves[leaf] + move, np.float64)
            return Point(self.s, self.plan, jax.tree.unflatten(structure, leaves), self.g)

    def _hull(self, leaf: int, h: float, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
        if self.plan.truth is None:
            return self.expected.cotangents[leaf], self.expected.cotangents[leaf]
        random = np.random.default_rng(self.plan.seed)
        shape = self.leaves[leaf].shape
        found = [self._gradient(leaf, h * random.normal(size=shape)) for _ in range(neighbours)]
        return np.fmin.reduce(found), np.fmax.reduce(found)

    def _sides(self, leaf: int, i: int, h: float) -> list[float]:
        """One partial derivative, a little below and a little above."""
        move = np.zeros(self.leaves[leaf].shape)
        move.flat[i] = h
        if self.plan.truth is None:
            return [self._slope(leaf, -move) / -h, self._slope(leaf, move) / h]
        return [float(self._gradient(leaf, sign * move).flat[i]) for sign in (-1, 1)]

    def _slope(self, leaf: int, move: np.ndarray) -> float:
        """How much <g, f> changes when one leaf moves."""
        with jax.enable_x64(True):
            taken = self.plan.differences_at(self.s, self.args)
        leaves = list(taken.leaves)
        leaves[leaf] = leaves[leaf] + move
        weights = [np.asarray(x, np.float64) for x in self.g]
        triples = zip(weights, taken.at(leaves), taken.values(), strict=True)
        return float(sum(np.sum(w * (b - a)) for w, b, a in triples))

    def _right_slope(self, leaf: int, d: Difference, v: np.ndarray, h: float, slack: float) -> bool:
        """Whether the gradient has the slope that the function has along v, if it has one."""
        if self.plan.truth is None:
            return True
        below, above = (float(np.sum(v * self._gradient(leaf, t * h * v))) for t in (-1, 1))
        count = np.sum(v)
        allowed = count * slack + 1e-5 * d.scale * count**0.5
        if not abs(above - below) <= allowed:
            return True
        return bool(abs(np.sum(v * d.got) - (above + below) / 2) <= 2 * allowed)

    def right_together(self, cotangents: list[np.ndarray], tolerance: float) -> bool:
        """Whether the gradients have the right slope where all arguments move by the same amount.

        Ties between arguments stay ties then: the function may be smooth along that line, where
        its slope leaves no choice.
        """
        if self.plan.truth is None:
            return True
        h = NEAR * max([*map(largest, self.leaves), 0.0], default=1.0) or NEAR
        below, above = (_total(self._all_moved(sign * h).expected.cotangents) for sign in (-1, 1))
        sizes = [np.abs(d) for d in cotangents]
        allowed = max(tolerance, 1e-6) * max(_total(sizes), 1.0)
        if not abs(above - below) <= allowed:
            return True
        return bool(abs(_total(cotangents) - (above + below) / 2) <= 2 * allowed)

    def _all_moved(self, move: float) -> "Point":
        with jax.enable_x64(True):
            wide = in_dtype(self.args, jnp.float64)
            args = jax.tree.map(
                lambda x: on_device(np.asarray(x) + move, np.float64) if is_float(x) else x, wide
            )
            return Point(self.s, self.plan, args, self.g)

    def sides_with_f(self, leaf: int, d: Difference) -> np.ndarray:
        """Which wrong elements finite differences of f's own value confirm: all or none."""
        if self.plan.precision.inside != jnp.float64 or self.plan.truth is None:
            return np.zeros(d.wrong.shape, bool)
        weights = [np.asarray(x, np.float64) for x in self.g]
        with jax.enable_x64(True):
            taken = self.plan.differences_at(self.s, self.args)

            def sides(i: int) -> bool:
                value, error = taken.element(leaf, int(i), weights)
                gap = 0.05 * d.error.flat[i]
                return bool(np.isfinite(gap) and abs(value - d.got.flat[i]) + error <= gap)

            confirmed = all(map(sides, _worst_of(d)))
        return d.wrong if confirmed else np.zeros(d.wrong.shape, bool)


def _worst_of(d: Difference) -> np.ndarray:
    """The flat indices of the worst elements, the worst first, as many as are looked into."""
    order = np.argsort(-d.error, axis=None, kind="stable")
    return order[: min(ONE_BY_ONE, int(d.wrong.sum()))]


def _total(arrays: list[np.ndarray]) -> float:
    return float(sum(np.sum(x) for x in arrays))


def _zeros(arrays: list[np.ndarray]) -> list[np.ndarray]:
    return [np.zeros(x.shape) for x in arrays]


def _between(
    got: float, bounds: list[float], closer: list[float], slack: float, scale: float
) -> bool:
    """Whether the gradient jumps here, and got lies within the jump."""
    if not np.isfinite([got, *bounds, *closer]).all():
        return False
    low, high = min(bounds), max(bounds)
    width, still = high - low, max(closer) - min(closer)
    jumps = width > max(1e-6 * scale, slack) and still > 0.5 * width
    return bool(jumps and low - slack - 1e-3 * width <= got <= high + slack + 1e-3 * width)


def _shifts(d: Difference) -> Iterator[np.ndarray]:
    """Directions that keep ties: every entry together, and those on a line with the worst."""
    shape = d.wrong.shape
    yield np.ones(shape)
    for axis in range(len(shape)) if len(shape) > 1 else ():
        v = np.zeros(shape)
        v[tuple(slice(None) if a == axis else i for a, i in enumerate(d.worst))] = 1
        yield v
