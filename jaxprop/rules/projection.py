"""Linear maps between any axes: an einsum of two operands."""

from dataclasses import dataclass, field
from string import ascii_letters

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.precision import at_least_float32, floating, up
from jaxprop.rule import Case, Rule
from jaxprop.samples import normal

Labels = tuple[str, str, str]  # of x, of w and of y: one letter an axis


def projection_reference(
    x: jax.Array, w: jax.Array, b: jax.Array | None = None, *, equation: str
) -> jax.Array:
    """Contract two operands by an einsum: y = einsum(equation, x, w) + b.

    Use it where a linear map has several axes in or out, so that heads and experts need no
    reshapes: "btc,chd->bthd" makes queries, "bthd,hdc->btc" gathers heads, "...i,io->...o" is
    linear.

    Scope      equation="ij,jk->ik", which any is once its labels are grouped: those that x and y
               have, those summed, those that w and y have; labels that all three have are a loop
    Forward    y = x @ w + b                                           (F1)
    Backward   dx = g @ w.T                                            (B1) from F1
               dw = x.T @ g                                            (B2) from F1
               db = sum_rows(g)                                        (B3) from F1

    Args:
        x: floating, an axis for each of its labels.
        w: floating, an axis for each of its labels; taken in x's dtype.
        b: the last axes of y, floating, or None for no bias.
        equation: the labels of x, w and y, as for jnp.einsum. A label stands once in each. "..."
            stands for any axes, as many in x as in w where both have it. A label that only one
            operand has, and not y, is summed over.

    Returns:
        y: an axis for each of its labels, x's dtype.

    Residuals: x and w (arguments).

    Numerics: the products accumulate in float32 for lower precisions; what one operand alone is
        summed over is summed there first. Rounded once, to the dtypes of y, w and b.

    Raises:
        TypeError: where x, w or b is not floating.
        ValueError: where the equation is not of this form, or does not fit the axes; where b is
            not the last axes of y.

    Source: the cotangent of one operand is the einsum of g and the other, labels exchanged.
    """
    return _projection(x, w, b, labels(equation, x, w))  # F1


def _projection(x: jax.Array, w: jax.Array, b: jax.Array | None, named: Labels) -> jax.Array:
    _check(x, w, b, named)
    of_x, of_w, of_y = named
    y = _contracted(x, of_x, w, of_w, of_y)  # F1
    return (y if b is None else y + b.astype(y.dtype)).astype(x.dtype)  # F1


def labels(equation: str, x: jax.Array, w: jax.Array) -> Labels:
    """The labels of x, w and y, letters in the place of an ellipsis; ValueError where it has none.

    Blanks are left out.
    """
    parts = equation.replace(" ", "").split("->") if isinstance(equation, str) else []
    operands = parts[0].split(",") if len(parts) == 2 else []
    if len(operands) != 2 or not all(map(_is_term, [*operands, parts[1]])):
        raise ValueError(
            "projection: equation must be the labels of x, w and y, a letter each, such as "
            f"'btc,chd->bthd' or '...i,io->...o', got {equation!r}."
        )
    of_x, of_w, of_y = *operands, parts[1]
    free = "".join(letter for letter in ascii_letters if letter not in equation)
    counts = [_hidden(term, operand) for term, operand in ((of_x, x), (of_w, w))]
    hidden = {count for count in counts if count is not None}
    if len(hidden) > 1 or (bool(hidden) != ("..." in of_y)):
        raise ValueError(
            "projection: an ellipsis must stand for as many axes in each operand that has one, and "
            f"in y too, got {equation!r} for x {x.shape} and w {w.shape}. Write letters instead."
        )
    letters = free[: max(hidden, default=0)]
    of_x, of_w, of_y = (term.replace("...", letters) for term in (of_x, of_w, of_y))
    return of_x, of_w, of_y


def _is_term(term: str) -> bool:
    """Whether it is letters, an ellipsis among them or not, none of them twice."""
    letters = term.replace("...", "", 1)
    return all(letter in ascii_letters for letter in letters) and len(set(letters)) == len(letters)


def _hidden(term: str, operand: jax.Array) -> int | None:
    """How many axes its ellipsis stands for; None where it has none."""
    return max(operand.ndim - len(term.replace("...", "")), 0) if "..." in term else None


def _contracted(a: jax.Array, of_a: str, b: jax.Array, of_b: str, of_y: str) -> jax.Array:
    """The einsum in a's dtype, accumulated and returned in the dtype to compute in.

    A label of y that neither has is left out.
    """
    of_y = "".join(label for label in of_y if label in of_a + of_b)
    a, of_a = _summed_alone(a, of_a, of_b + of_y)
    b, of_b = _summed_alone(b, of_b, of_a + of_y)
    loops = [label for label in of_a if label in of_b and label in of_y]
    summed = [label for label in of_a if label in of_b and label not in of_y]
    free = [label for label in of_a + of_b if label not in loops + summed]

    def axes(kind: list[str]) -> tuple[list[int], list[int]]:
        return [of_a.index(label) for label in kind], [of_b.index(label) for label in kind]

    wide = at_least_float32(a.dtype)
    y = lax.dot_general(
        a, b.astype(a.dtype), (axes(summed), axes(loops)), preferred_element_type=wide
    )
    return y.transpose([(loops + free).index(label) for label in of_y])


def _summed_alone(a: jax.Array, of_a: str, others: str) -> tuple[jax.Array, str]:
    """a and its labels, summed over those that are in no other."""
    axes = tuple(axis for axis, label in enumerate(of_a) if label not in others)
    if not axes:
        return a, of_a
    return jnp.sum(up(a), axis=axes), "".join(label for label in of_a if label in others)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ProjectionResiduals:
    x: jax.Array
    w: jax.Array
    labels: Labels = field(metadata={"static": True})
    b_axes: int = field(metadata={"static": True})


def projection_forward(
    x: jax.Array, w: jax.Array, b: jax.Array | None, *, equation: str
) -> tuple[jax.Array, ProjectionResiduals]:
    named = labels(equation, x, w)
    y = _projection(x, w, b, named)  # F1
    return y, ProjectionResiduals(x, w, named, 0 if b is None else b.ndim)


def projection_backward(
    res: ProjectionResiduals, g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    of_x, of_w, of_y = res.labels
    dx = _spread(_contracted(g, of_y, res.w, of_w, of_x), of_x, of_y + of_w, res.x)  # B1
    dw = _spread(_contracted(res.x, of_x, g, of_y, of_w), of_w, of_x + of_y, res.w)  # B2
    db = jnp.sum(up(g), axis=tuple(range(g.ndim - res.b_axes)))  # B3
    return dx, dw, db


def _spread(d: jax.Array, of_d: str, found: str, primal: jax.Array) -> jax.Array:
    """d along the labels that its operand alone was summed over, too: the same everywhere."""
    shape = [n if label in found else 1 for n, label in zip(primal.shape, of_d, strict=True)]
    return jnp.broadcast_to(d.reshape(shape), primal.shape)


def _check(x: jax.Array, w: jax.Array, b: jax.Array | None, named: Labels) -> None:
    for name, array in {"x": x, "w": w, "b": b}.items():
        if array is not None:
            floating("projection", name, array)
    of_x, of_w, of_y = named
    if x.ndim != len(of_x) or w.ndim != len(of_w):
        raise ValueError(
            f"projection: x must have the axes {of_x!r} and w the axes {of_w!r}, got x {x.shape} "
            f"and w {w.shape}. Give a label for each axis, or '...' for several."
        )
    lengths = dict(zip(of_x, x.shape, strict=True))
    for label, length in zip(of_w, w.shape, strict=True):
        if lengths.setdefault(label, length) != length:
            raise ValueError(
                f"projection: the label {label!r} must have one length, got {lengths[label]} in x "
                f"{x.shape} and {length} in w {w.shape}. Nothing is broadcast: transpose, or drop "
                "the axis."
            )
    if unknown := [label for label in of_y if label not in lengths]:
        raise ValueError(
            f"projection: the label {unknown[0]!r} of y must be one of x's {of_x!r} or w's "
            f"{of_w!r}. Broadcast the result instead."
        )
    shape = tuple(lengths[label] for label in of_y)
    if b is not None and (b.ndim > len(shape) or b.shape != shape[len(shape) - b.ndim :]):
        raise ValueError(
            f"projection: b must be the last axes of y {shape}, got {b.shape}. Nothing is "
            "broadcast: add, drop or repeat an axis."
        )


def projection_cases() -> list[Case]:
    x, w, b = normal(0, 5, 3), normal(1, 3, 4), normal(2, 4)
    matrices = {"x": x, "w": w, "b": b, "equation": "ij,jk->ik"}
    deep, heads, per_head = normal(3, 2, 3, 4), normal(4, 4, 3, 2), normal(5, 3, 2)
    low = deep.astype(jnp.bfloat16)
    queries, experts = {"equation": "btc,chd->bthd"}, {"equation": "ebi,eio->ebo"}
    return [
        Case("heads", (deep, heads, per_head), queries, given=matrices),
        Case("bfloat16 data", (low, heads, per_head), queries, given=matrices),
        Case("no time", (deep[:, :0], heads, per_head), queries, edge=True),
        Case("experts", (deep, normal(6, 2, 4, 3)), experts, given=matrices),
        Case("an ellipsis", (deep, normal(7, 4, 5)), {"equation": "...i,io->...o"}, given=matrices),
        Case("summed alone", (deep, heads), {"equation": "btc,chd->td"}, given=matrices),
    ]


projection = Rule(
    projection_reference, projection_forward, projection_backward, projection_cases, budget=0
)
