"""What the forward keeps for the backward, in bytes."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from jaxprop.checking.judging import brief, raised
from jaxprop.checking.plan import Plan
from jaxprop.checking.report import Finding
from jaxprop.checking.subject import PyTree, Subject

CHECK = "residuals"


class Kept(NamedTuple):
    """Bytes over distinct buffers, arguments and output left out; and the largest of them."""

    bytes: int
    largest: str


def kept(f: Callable[..., PyTree], args: tuple[PyTree, ...]) -> Kept:
    y, vjp = jax.vjp(f, *args)
    known = {_buffer(x) for x in jax.tree.leaves((args, y)) if _has_buffer(x)}
    found = {_buffer(x): x for x in jax.tree.leaves(vjp) if _has_buffer(x)}
    extra = [x for buffer, x in found.items() if buffer not in known]
    biggest = max(extra, key=lambda x: x.nbytes, default=None)
    name = "" if biggest is None else f"{biggest.dtype}{list(biggest.shape)}"
    return Kept(sum(x.nbytes for x in extra), name)


def _has_buffer(x: object) -> bool:
    return isinstance(x, (jax.Array, np.ndarray)) and x.dtype != jax.dtypes.float0 and x.size > 0


def _buffer(x: jax.Array) -> object:
    """What tells one buffer from another: its address, or the object itself where it has none."""
    try:
        return x.unsafe_buffer_pointer()
    except (AttributeError, ValueError):
        return id(x)


def residuals(s: Subject, plan: Plan) -> Iterator[Finding]:
    """Check 11: bytes beside automatic differentiation's; a budget per output element if given."""
    try:
        mine = kept(s.call, s.args)
        size = sum(y.size for y in jax.tree.leaves(jax.eval_shape(s.call, *s.args)))
    except Exception as error:
        yield Finding(CHECK, "", "SKIP", message=f"raises {brief(error)}")
        return
    text = f"{mine.bytes} bytes" + (f", the largest {mine.largest}" if mine.largest else "")
    truth = plan.truth
    if truth is not None and not plan.surrogate and not raised(lambda: kept(truth, s.args)):
        text += f"; automatic {kept(truth, s.args).bytes}"
    over = plan.budget is not None and mine.bytes > plan.budget * max(size, 1)
    if over:
        text += f"; the budget is {plan.budget:g} per element of {size}"
    yield Finding(CHECK, "", "FAIL" if over else "PASS", message=text)
