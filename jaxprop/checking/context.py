"""What findings say together: an argument wrong in one place only, and nowhere else."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from jaxprop.checking.report import Finding

Place = Callable[[Finding], bool]


def in_context(outcomes: Iterable[Finding]) -> list[Finding]:
    """The findings; where all those of an argument lie in one kind of place, the hint says so."""
    outcomes = list(outcomes)
    by_argument: dict[str, list[Finding]] = {}
    for outcome in outcomes:
        if outcome.verdict == "FAIL":
            by_argument.setdefault(outcome.argument, []).append(outcome)
    said = {argument: _only(found) for argument, found in by_argument.items()}
    if all(o.check == "second order" for o in outcomes if o.verdict == "FAIL"):
        said = dict.fromkeys(by_argument, "right once, wrong twice: only the second order is")
    return [
        replace(o, hint=_joined(said[o.argument], o.hint)) if o.verdict == "FAIL" else o
        for o in outcomes
    ]


def _only(found: list[Finding]) -> str:
    return next((text for text, holds in _PLACES.items() if all(map(holds, found))), "")


def _joined(first: str, hint: str) -> str:
    if not first or first in hint:
        return hint
    return f"{first}; {hint}" if hint else first


def _at(check: str, *starts: str) -> Place:
    return lambda o: o.check == check and (not starts or o.transform.startswith(starts))


def _above(o: Finding) -> bool:
    return o.check == "linearity" and o.transform.startswith("2^") and "-" not in o.transform


def _below(o: Finding) -> bool:
    return o.check == "linearity" and o.transform.startswith("2^-")


_PLACES: dict[str, Place] = {
    "wrong only where g is large: clipped?": _above,
    "wrong only where g is small: rounded?": _below,
    "wrong only at ties": _at("edges", "ties", "all equal"),
    "wrong only at zeros": _at("edges", "zeros", "one zero", "first row zeros"),
    "wrong only at extreme values": _at("edges", "large", "very large", "shifted"),
    "wrong only at infinities": _at("edges", "one -inf", "one inf"),
    "wrong only at edges": _at("edges"),
    "wrong only under vmap": _at("transforms", "vmap of vjp", "vjp of vmap"),
    "wrong only under jit": lambda o: o.check == "transforms" and "jit" in o.transform,
    "wrong only in shard_map": _at("transforms", "shard_map"),
    "wrong only for other shapes": _at("shapes"),
    "wrong only in low precision": lambda o: o.check == "numerics" and "float16" in o.transform,
    "wrong only when calls mingle": _at("purity"),
}
