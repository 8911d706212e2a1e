"""Layers: rules over (params, x, key), with the `init` that makes their parameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprop.installing import PyTree, Saved
from jaxprop.rule import Rule
from jaxprop.rules.activations import identity
from jaxprop.rules.linear import linear

Shape = tuple[int, ...]
Initializer = Callable[[jax.Array, Shape, Any], jax.Array]


@dataclass(frozen=True, eq=False, repr=False)
class Layer(Rule):
    """A Rule over (params, x, key=None) -> y, with the `init` that makes its parameters.

    init(key, x_shape, dtype=float32)   parameters for an x of that shape, batch axis included.
    layers                              its named parts; params[name] are the part's parameters.
    sequential                          whether those run one after the other, each on the
                                        output of the one before (a chain).
    quantities                          the steps inside a layer without parts, by the name of
                                        what each computes (dense: a, h), for the trace. The
                                        first takes the layer's parameters, the others none.
    """

    init: Callable[..., PyTree] = field(kw_only=True)
    layers: Mapping[str, "Layer"] = field(default_factory=dict, kw_only=True)
    sequential: bool = field(default=False, kw_only=True)
    quantities: Mapping[str, "Layer"] = field(default_factory=dict, kw_only=True)


def elementwise(activation: Rule) -> Layer:
    """Make a layer without parameters of a rule of one array, such as an activation.

    `chain` does this to the rules it is given, so it is rarely called by hand.

    Args:
        activation: a Rule x -> y; options fixed with `activation.bind(...)`.

    Returns:
        A Layer; its params are the empty dict, its key is not used.

    Residuals: the activation's own.

    Raises:
        TypeError: where `activation` is not a Rule that can be called with x alone.
    """
    check_activation("elementwise", activation)

    def reference(params: PyTree, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return activation.reference(x)

    def forward(params: PyTree, x: jax.Array, key: jax.Array | None) -> tuple[jax.Array, Saved]:
        return activation.forward(x)

    def backward(res: Saved, g: jax.Array) -> tuple[None, jax.Array, None]:
        return None, activation.backward(res, g)[0], None

    def init(key: jax.Array, x_shape: Shape, dtype: Any = jnp.float32) -> PyTree:
        return {}

    reference.__name__ = activation.name
    reference.__doc__ = activation.reference.__doc__
    return Layer(reference, forward, backward, init=init)


class DenseResiduals(NamedTuple):
    affine: Saved
    activation: Saved


def dense(
    units: int,
    activation: Rule = identity,
    *,
    bias: bool = True,
    weights: Initializer | None = None,
) -> Layer:
    """Make a fully connected layer: an affine map and its activation.

    Layer k of the seed derivation, whose quantities are a and h. For a penalty on a
    itself, chain `dense(units)` and the activation as two layers.

    Forward    a = x @ w + b                                           (F1)
               h = f(a)                                                (F2)
    Backward   da = g * f'(a), or f's vector-Jacobian product          (B1) from F2
               dx = da @ w.T                                           (B2) from F1
               dw = x.T @ da                                           (B3) from F1
               db = sum_rows(da)                                       (B4) from F1

    Args:
        units: the width of the output, at least 1.
        activation: a Rule of one array; options fixed with `activation.bind(...)`.
        bias: whether there is a b; it starts at zero.
        weights: `(key, shape, dtype) -> w`, as `jax.nn.initializers` makes them;
            Glorot's uniform where None.

    Returns:
        A Layer; params are {"w": (n_in, units), "b": (units,)}, x is (..., n_in).

    Residuals: those of linear (x and w) and of the activation.

    Raises:
        ValueError: where units is not a positive integer.
        TypeError: where `activation` is not a Rule that can be called with x alone.

    Source: seed claims N0 to N8; Goodfellow et al., Algorithms 6.3 and 6.4.
    """
    if isinstance(units, bool) or not isinstance(units, int) or units < 1:
        raise ValueError(f"dense: units must be a positive integer, got {units!r}.")
    check_activation("dense", activation)

    def reference(params: PyTree, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        a = linear.reference(x, params["w"], params.get("b"))  # F1
        return activation.reference(a)  # F2

    def forward(
        params: PyTree, x: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, DenseResiduals]:
        a, affine = linear.forward(x, params["w"], params.get("b"))  # F1
        h, saved = activation.forward(a)  # F2
        return h, DenseResiduals(affine, saved)

    def backward(res: DenseResiduals, g: jax.Array) -> tuple[PyTree, jax.Array, None]:
        da = activation.backward(res.activation, g)[0]  # B1
        dx, dw, db = linear.backward(res.affine, da)  # B2, B3, B4
        return parameters(dw, db), dx, None

    def init(key: jax.Array, x_shape: Shape, dtype: Any = jnp.float32) -> PyTree:
        make = weights or jax.nn.initializers.glorot_uniform()
        w = make(key, (x_shape[-1], units), dtype)
        return parameters(w, jnp.zeros((units,), dtype) if bias else None)

    reference.__name__ = "dense"
    reference.__doc__ = dense.__doc__
    quantities = {"a": affine_step(linear, init), "h": elementwise(activation)}
    return Layer(reference, forward, backward, init=init, quantities=quantities)


def affine_step(rule: Rule, init: Callable[..., PyTree]) -> Layer:
    """The first step of a layer, by itself: a = rule(x, w, b), of linear or a convolution."""

    def affine(params: PyTree, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return rule.reference(x, params["w"], params.get("b"))

    def forward(params: PyTree, x: jax.Array, key: jax.Array | None) -> tuple[jax.Array, Saved]:
        return rule.forward(x, params["w"], params.get("b"))

    def backward(res: Saved, g: jax.Array) -> tuple[PyTree, jax.Array, None]:
        dx, dw, db = rule.backward(res, g)
        return parameters(dw, db), dx, None

    return Layer(affine, forward, backward, init=init)


def normalisation(norm: Rule) -> Layer:
    """Make a layer of a norm that scales by a learned gamma, and shifts by a beta if it has one.

    For layer_norm, rms_norm, group_norm and instance_norm. batch_norm has statistics besides:
    see `jaxprop.models.resnet`.

    Forward    y = norm(x, gamma, beta)                                (F1)
    Backward   dx, dgamma, dbeta = from g                              (B1) from F1

    Args:
        norm: a Rule (x, gamma) or (x, gamma, beta); options fixed with `bind(...)`, as in
            `layer_norm.bind(eps=1e-5)`.

    Returns:
        A Layer; params are {"gamma": (C,), "beta": (C,)}, ones and zeros at the start, x is
        (..., C).

    Residuals: those of the norm.

    Raises:
        TypeError: where `norm` is not such a Rule.
    """
    names = _parameters_of_norm(norm)

    def reference(params: PyTree, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return norm.reference(x, *(params[name] for name in names))  # F1

    def forward(params: PyTree, x: jax.Array, key: jax.Array | None) -> tuple[jax.Array, Saved]:
        return norm.forward(x, *(params[name] for name in names))  # F1

    def backward(res: Saved, g: jax.Array) -> tuple[PyTree, jax.Array, None]:
        dx, *dparams = norm.backward(res, g)  # B1
        return dict(zip(names, dparams, strict=True)), dx, None

    def init(key: jax.Array, x_shape: Shape, dtype: Any = jnp.float32) -> PyTree:
        start = {"gamma": jnp.ones, "beta": jnp.zeros}
        return {name: start[name](x_shape[-1:], dtype) for name in names}

    reference.__name__ = norm.name
    reference.__doc__ = norm.reference.__doc__
    return Layer(reference, forward, backward, init=init)


def _parameters_of_norm(norm: Rule) -> tuple[str, ...]:
    """("gamma",) or ("gamma", "beta"); TypeError where the rule takes others."""
    if isinstance(norm, Rule) and norm.argument_names[1:] in (("gamma",), ("gamma", "beta")):
        try:
            norm.resolve(*[None] * len(norm.argument_names))
        except TypeError as error:
            raise TypeError(f"normalisation: {error} Fix its options with bind(...).") from None
        return norm.argument_names[1:]
    raise TypeError(
        f"normalisation: the norm must be a Rule of (x, gamma) or (x, gamma, beta), got {norm!r}. "
        "Give layer_norm.bind(eps=1e-5), say."
    )


def parameters(w: jax.Array, b: jax.Array | None) -> PyTree:
    """The parameters of an affine map, or their cotangents."""
    return {"w": w} if b is None else {"w": w, "b": b}


def check_activation(owner: str, activation: Rule) -> None:
    if not isinstance(activation, Rule):
        raise TypeError(
            f"{owner}: the activation must be a Rule, got {type(activation).__name__} "
            f"({activation!r}). Give one such as jaxprop.relu, or make one with jaxprop.Rule."
        )
    try:
        activation.resolve(None)
    except TypeError:
        raise TypeError(
            f"{owner}: the activation must be a rule of one array, got {activation!r}. Fix its "
            "options with bind(...); a rule with more arrays needs a layer of its own."
        ) from None
