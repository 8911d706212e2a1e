"""Rules on meshes with Explicit axes, where JAX asks for the sharding of every result."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import jax
from jax.sharding import AbstractMesh, NamedSharding

from jaxprop.array_types import ArrayType, PyTree, TreeType, zeros


@contextmanager
def remedy(owner: str) -> Iterator[None]:
    """Turns JAX's refusal to trace on Explicit mesh axes into one that says what to do."""
    try:
        yield
    except Exception as error:  # JAX does not export the type ShardingTypeError
        if type(error).__name__ != "ShardingTypeError":
            raise
        raise ValueError(
            f"{owner}: this operation is ambiguous for arrays sharded like these over Explicit "
            "mesh axes. Make the mesh with axis_types=(jax.sharding.AxisType.Auto, ...), or call "
            f"it through jax.sharding.auto_axes. JAX says: {error}"
        ) from error


def on_auto_axes(
    backward: Callable[[PyTree, PyTree], tuple[PyTree, ...]], primals: Sequence[TreeType]
) -> Callable[[PyTree, PyTree], tuple[PyTree, ...]]:
    """`backward`, whose cotangents fit `primals`, run with Explicit mesh axes turned to Auto.

    On an Explicit mesh `x.T @ g` over a sharded batch raises, as its output's sharding
    is ambiguous. It is not ambiguous to us: a cotangent is sharded as its primal.
    Inside, axes are Auto already, so a chain's inner backwards are left as they are.
    """
    mesh = _mesh(primals)
    if not mesh.explicit_axes:
        return backward

    def dense(residuals: PyTree, g: PyTree) -> list[list[jax.Array]]:
        cotangents = backward(residuals, g)
        return [_dense(primal, ct) for primal, ct in zip(primals, cotangents, strict=True)]

    def wrapped(residuals: PyTree, g: PyTree) -> tuple[PyTree, ...]:
        shardings = [
            [NamedSharding(mesh, kind.sharding.spec) for kind in _differentiable(primal)]
            for primal in primals
        ]
        on_auto = jax.sharding.auto_axes(dense, axes=mesh.explicit_axes, out_sharding=shardings)
        leaves = on_auto(residuals, g)
        return tuple(_undense(primal, some) for primal, some in zip(primals, leaves, strict=True))

    return wrapped


def _mesh(primals: Sequence[TreeType]) -> AbstractMesh:
    """The mesh in use, or where none is set (jit of sharded arrays) that of the arguments."""
    mesh = jax.sharding.get_abstract_mesh()
    others = [kind.sharding.mesh.abstract_mesh for primal in primals for kind in primal.leaves]
    return next((other for other in [mesh, *others] if not other.empty), mesh)


def _differentiable(primal: TreeType) -> list[ArrayType]:
    return [kind for kind in primal.leaves if kind.differentiable]


def _dense(primal: TreeType, cotangent: PyTree) -> list[jax.Array]:
    """The differentiable leaves of a cotangent, zeros where it has None."""
    if cotangent is None:
        return [zeros(kind) for kind in _differentiable(primal)]
    leaves = primal.structure.flatten_up_to(cotangent)
    return [
        zeros(kind) if leaf is None else leaf
        for leaf, kind in zip(leaves, primal.leaves, strict=True)
        if kind.differentiable
    ]


def _undense(primal: TreeType, leaves: list[jax.Array]) -> PyTree:
    remaining = iter(leaves)
    return primal.structure.unflatten(
        [next(remaining) if kind.differentiable else None for kind in primal.leaves]
    )
