"""Combinators that shape a deep network: residuals, a checkpoint; and what stacks share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.array_types import vary, varying_axes
from jaxprop.composition import add_cotangents, as_layer, chain
from jaxprop.installing import PyTree, Saved
from jaxprop.layers import Layer, Shape
from jaxprop.rule import Rule


def residual(branch: Rule) -> Layer:
    """Make a layer that adds what a branch computes to its input: y = x + f(x).

    Use it around each block of a deep network, so that gradients reach every depth.

    Args:
        branch: a Layer, or a Rule of one array, whose output has x's shape and dtype.

    Returns:
        A Layer; params and parts are those of the branch, which gets the key as it is.

    Residuals: those of the branch.

    Raises:
        TypeError: where the branch is neither a layer nor a rule of one array.
        ValueError: when called, where its output has another shape or dtype than x.

    Source: He et al. (2016), Deep residual learning for image recognition, equation 1.
    """
    layer = as_layer("residual", branch, "the branch")

    def reference(params: PyTree, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return x + like("residual", x, layer.reference(params, x, key))

    def forward(params: PyTree, x: jax.Array, key: jax.Array | None) -> tuple[jax.Array, Saved]:
        h, saved = layer.forward(params, x, key)
        return x + like("residual", x, h), saved

    def backward(res: Saved, g: jax.Array) -> tuple[PyTree, jax.Array, None]:
        dparams, dx, _ = layer.backward(res, g)
        return dparams, add_cotangents(g, dx), None

    reference.__name__ = "residual"
    reference.__doc__ = f"x and what {layer.name} computes of it, added."
    return Layer(reference, forward, backward, init=layer.init, layers=layer.layers)


def pre_norm(branch: Rule, norm: Rule) -> Layer:
    """Make a residual whose branch reads x normed: y = x + f(norm(x)).

    Use it in deep networks: the gradient reaches every depth past all norms.

    Forward    n = norm(x)                                             (F1)
               y = x + f(n)                                            (F2)
    Backward   dn, df's parameters = from g                            (B1) from F2
               dx = g + from dn; dnorm's parameters                    (B2) from F1, F2

    Args:
        branch: a Layer, or a Rule of one array, whose output has x's shape and dtype.
        norm: a Layer, such as `normalisation(layer_norm.bind(eps=1e-5))`.

    Returns:
        A Layer; params are {"norm": .., "branch": ..}. It is
        `residual(chain(norm=norm, branch=branch))`.

    Residuals: those of the norm and of the branch.

    Raises:
        TypeError: where one is neither a layer nor a rule of one array.
        ValueError: when called, where the branch's output has another shape or dtype than x.

    Source: Xiong et al. (2020), On layer normalization in the transformer architecture.
    """
    return residual(
        chain(
            norm=as_layer("pre_norm", norm, "the norm"),
            branch=as_layer("pre_norm", branch, "the branch"),
        )
    )


def post_norm(branch: Rule, norm: Rule) -> Layer:
    """Make a residual that is normed afterwards: y = norm(x + f(x)).

    Forward    u = x + f(x)                                            (F1)
               y = norm(u)                                             (F2)
    Backward   du = from g; dnorm's parameters                         (B1) from F2
               dx = du + from du through f; df's parameters            (B2) from F1

    Args:
        branch: a Layer, or a Rule of one array, whose output has x's shape and dtype.
        norm: a Layer, such as `normalisation(layer_norm.bind(eps=1e-5))`.

    Returns:
        A Layer; params are {"branch": .., "norm": ..}. It is
        `chain(branch=residual(branch), norm=norm)`.

    Residuals: those of the branch and of the norm.

    Raises:
        TypeError: where one is neither a layer nor a rule of one array.
        ValueError: when called, where the branch's output has another shape or dtype than x.

    Source: Vaswani et al. (2017), Attention is all you need, section 5.4.
    """
    return chain(
        branch=residual(as_layer("post_norm", branch, "the branch")),
        norm=as_layer("post_norm", norm, "the norm"),
    )


class CheckpointedResiduals(NamedTuple):
    params: PyTree
    x: jax.Array
    key: jax.Array | None


def checkpointed(segment: Rule) -> Layer:
    """Make a layer that saves its input alone, and runs its forward again in backward.

    Use it on segments of a deep network whose residuals do not fit; it costs one more forward.

    Args:
        segment: a Layer, such as a chain, or a Rule of one array.

    Returns:
        A Layer; params and parts are those of the segment.

    Residuals: the arguments.

    Numerics: those of the segment. XLA does not see that the two forwards are the same and keep
        the residuals of the first: the second reads its arguments past a barrier, with g.

    Raises:
        TypeError: where the segment is neither a layer nor a rule of one array.

    Source: Chen et al. (2016), Training deep nets with sublinear memory cost.
    """
    layer = as_layer("checkpointed", segment, "the segment")

    def reference(params: PyTree, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return layer.reference(params, x, key)

    def forward(
        params: PyTree, x: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, CheckpointedResiduals]:
        return layer.forward(params, x, key)[0], CheckpointedResiduals(params, x, key)

    def backward(res: CheckpointedResiduals, g: jax.Array) -> tuple[PyTree, jax.Array | None, None]:
        params, x, g = lax.optimization_barrier((res.params, res.x, g))
        _, saved = layer.forward(params, x, res.key)
        dparams, dx, _ = layer.backward(saved, g)
        return dparams, dx, None

    reference.__name__ = "checkpointed"
    reference.__doc__ = f"{layer.name}, of which backward keeps the input alone."
    return Layer(
        reference,
        forward,
        backward,
        init=layer.init,
        layers=layer.layers,
    )


def keys_of(key: jax.Array | None, n: int) -> jax.Array | None:
    """One key per repetition; that of a repetition depends on its position alone."""
    if key is None:
        return None
    return jax.vmap(lambda k: jax.random.fold_in(key, k))(jnp.arange(n, dtype=jnp.uint32))


def carried(x: jax.Array, params: PyTree) -> jax.Array:
    """x, varying over the mesh axes on which params do: it is carried through them."""
    return vary(x, frozenset().union(*map(varying_axes, jax.tree.leaves(params))))


def stacked_init(init: Callable[..., PyTree], n: int) -> Callable[..., PyTree]:
    def stacked(key: jax.Array, x_shape: Shape, dtype: Any = jnp.float32) -> PyTree:
        return jax.vmap(lambda k: init(k, x_shape, dtype))(keys_of(key, n))

    return stacked


def like(owner: str, x: jax.Array, y: jax.Array) -> jax.Array:
    if y.shape != x.shape or y.dtype != x.dtype:
        raise ValueError(
            f"{owner}: the output must have x's shape and dtype, {x.shape} {x.dtype}, got "
            f"{y.shape} {y.dtype}. End with a layer as wide as x."
        )
    return y


def check_count(owner: str, n: int, name: str = "n") -> None:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"{owner}: {name} must be a positive integer, got {n!r}.")


def check_stacked(owner: str, params: PyTree, n: int) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if leaf.shape[:1] != (n,):
            raise ValueError(
                f"{owner}: params{jax.tree_util.keystr(path)} must have a first axis of {n}, one "
                f"for each repetition, got {leaf.shape}. Make params with init(key, x_shape)."
            )
