"""What a difference looks like: the usual slips, told by the numbers alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprop.checking.comparison import Difference, as_float64

ALIKE = 1e-5


def hint(
    d: Difference,
    g: Sequence[Any] = (),
    args: Mapping[str, Any] | None = None,
    devices: int = 1,
    alike: float = ALIKE,
) -> str:
    """What the difference looks like; empty where the numbers do not tell.

    Args:
        d: the difference.
        g: the cotangent's leaves.
        args: the floating leaves of the arguments, by name.
        devices: how many take part, where a ratio may be their number.
        alike: the relative error within which numbers count as equal.
    """
    got = d.got
    if not np.isfinite(got[d.wrong]).all():
        return _not_finite(d)
    leaves = [as_float64(leaf) for leaf in g]
    return (
        _zero(d)
        or _equal_to_g(got, leaves, alike)
        or _ratio(d, args or {}, leaves, devices, alike)
        or _transposed(d, alike)
        or _parallel(d, args or {}, leaves)
        or _place(d)
    )


def _not_finite(d: Difference) -> str:
    kind = "nan" if np.isnan(d.got[d.wrong]).any() else "infinite"
    return f"{kind} where the reference is finite: 0 / 0, 0 * inf or an overflow?"


def _zero(d: Difference) -> str:
    if np.any(d.got[d.wrong]):
        return ""
    if d.wrong.all() or not np.any(d.got):
        return "zero, or None, where the gradient is not"
    return _join("zero where the gradient is not", _place(d))


def _join(first: str, second: str) -> str:
    return f"{first}; {second}" if second else first


def _equal_to_g(got: np.ndarray, g: Sequence[np.ndarray], alike: float) -> str:
    if any(leaf.shape == got.shape and np.allclose(got, leaf, rtol=alike) for leaf in g):
        return "equal to g: the local Jacobian is missing"
    return ""


def _ratio(
    d: Difference, args: Mapping[str, Any], g: Sequence[np.ndarray], devices: int, alike: float
) -> str:
    """One ratio everywhere, or along one axis."""
    large = np.abs(d.expected) > 1e-6 * d.scale
    if not large.any():
        return ""
    ratios = d.got[large] / d.expected[large]
    ratio = float(np.median(ratios))
    if np.ptp(ratios) > alike * abs(ratio):
        return ""
    if abs(ratio + 1) <= alike:
        return "the wrong sign"
    if abs(ratio - 1) < 1e-3:
        return f"off by a factor 1 {ratio - 1:+.2g}: an approximation, or a coarser dtype inside?"
    if devices > 1 and _either(ratio, devices, alike):
        times = "once too often" if ratio > 1 else "once too little"
        return f"a ratio of {_shown(ratio)}, the number of devices: psum {times}?"
    word = "missing" if 0 < ratio < 1 or ratio < 0 else "too many"
    factor = 1 / ratio if 0 < abs(ratio) < 1 else ratio
    rounded = round(factor) if abs(factor - round(factor)) < 1e-2 * abs(factor) else factor
    said = f"a constant ratio of {_shown(ratio)}: a factor {rounded:.6g} {word}"
    length = _length(d, ratio, args, g, alike)
    which = "sum instead of mean" if ratio > 1 else "mean instead of sum"
    return f"{said}, or {which} over {length}?" if length else f"{said}?"


def _length(
    d: Difference, ratio: float, args: Mapping[str, Any], g: Sequence[np.ndarray], alike: float
) -> str:
    """An axis, or a whole array, of as many entries as the ratio says."""
    own = {"this argument": d.got, **args, **dict.fromkeys(["the output"], g[0] if g else d.got)}
    shapes = {name: np.shape(array) for name, array in own.items()}
    for name, shape in shapes.items():
        for axis, n in enumerate(shape):
            if n > 1 and _either(ratio, n, alike):
                return f"axis {axis} of {name}, which has {n} entries"
    for name, shape in shapes.items():
        if len(shape) > 1 and _either(ratio, int(np.prod(shape)), alike):
            return f"the {int(np.prod(shape))} elements of {name}"
    return ""


def _either(ratio: float, n: int, alike: float) -> bool:
    return abs(ratio / n - 1) <= alike or abs(ratio * n - 1) <= alike


def _shown(ratio: float) -> str:
    if 0 < abs(ratio) < 1 and abs(1 / ratio - round(1 / ratio)) < 1e-3:
        return f"{'-' if ratio < 0 else ''}1/{round(1 / abs(ratio))}"
    return f"{ratio:.6g}"


def _transposed(d: Difference, alike: float) -> str:
    square = d.got.ndim >= 2 and d.got.shape[-1] == d.got.shape[-2]
    near = alike * d.scale
    if square and np.max(np.abs(np.swapaxes(d.got, -1, -2) - d.expected)) <= near:
        return "transposed"
    return ""


def _parallel(d: Difference, args: Mapping[str, Any], g: Sequence[np.ndarray]) -> str:
    """The whole difference a multiple of an argument, of g, or constant."""
    extra = d.got - d.expected
    if not np.isfinite(extra).all():
        return ""
    size = np.max(np.abs(extra))
    named = {**args, **{f"g[{i}]" if len(g) > 1 else "g": leaf for i, leaf in enumerate(g)}}
    for name, arg in named.items():
        other = as_float64(arg)
        if extra.size < 2 or other.shape != extra.shape or np.ptp(other) == 0:
            continue
        c = float(np.sum(extra * other) / np.sum(other * other))
        if c and np.max(np.abs(extra - c * other)) <= 1e-4 * size:
            if name.startswith("g"):
                return f"off by {c:.4g} * {name}"
            verb = "lost" if c < 0 else "gained"
            return f"{verb} a term {abs(c):.4g} * {name}: a regulariser?"
    if extra.size > 1 and np.ptp(extra) <= 1e-6 * size:
        return f"off by the constant {extra.flat[0]:.4g}"
    return ""


def _place(d: Difference) -> str:
    """Where the wrong elements lie, if they lie together."""
    if d.wrong.all() or d.wrong.ndim == 0:
        return ""
    where = np.nonzero(d.wrong)
    if where[0].size == 1:
        return f"one element of {d.wrong.size}"
    for axis, n in enumerate(d.wrong.shape):
        hit = np.unique(where[axis])
        if n > 1 and hit.size < n and hit.size <= max(1, n // 2):
            if np.array_equal(hit, np.arange(n - hit.size, n)):
                return f"only the last {hit.size} of axis {axis}: the tail of a block?"
            if hit.size == 1:
                return f"only index {hit[0]} of axis {axis}"
    return ""
