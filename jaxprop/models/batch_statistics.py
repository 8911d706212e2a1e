"""Batch statistics as values: norms and networks that return them, averages that take them in.

Nothing is hidden in a layer. In training a network returns what each of its batch norms measured,
a tree of {"mean", "var"} by the norms' paths; the training step averages that over steps, and the
network that evaluates takes the averages as an argument.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprop.composition import add_cotangents, check_params
from jaxprop.installing import PyTree, Saved
from jaxprop.layers import Layer, Shape
from jaxprop.precision import at_least_float32
from jaxprop.rule import Rule
from jaxprop.rules.batch_norm import batch_norm, batch_norm_eval
from jaxprop.strength import check_strength, plus, scalar, weighted

LEARNED, MEASURED = ("gamma", "beta"), ("mean", "var")


def training_norm(eps: float) -> Layer:
    """Make a batch norm as a layer (params, x) -> (y, {"mean", "var"}), as training has it.

    Forward    y, mean, var = batch_norm(x, gamma, beta)               (F1)
    Backward   dx, dgamma, dbeta = from g_y, g_mean and g_var          (B1) from F1
    """
    norm = batch_norm.bind(eps=eps)

    def reference(params: PyTree, x: jax.Array, key: jax.Array | None = None) -> tuple:
        y, *measured = norm.reference(x, *_of(params, LEARNED))  # F1
        return y, dict(zip(MEASURED, measured, strict=True))

    def forward(params: PyTree, x: jax.Array, key: jax.Array | None) -> tuple[tuple, Saved]:
        (y, *measured), of_y = norm.forward(x, *_of(params, LEARNED))  # F1
        return (y, dict(zip(MEASURED, measured, strict=True))), of_y

    def backward(res: Saved, g: tuple[jax.Array, PyTree]) -> tuple[PyTree, jax.Array, None]:
        g_y, g_measured = g
        dx, *dparams = norm.backward(res, (g_y, *_of(g_measured, MEASURED)))  # B1
        return dict(zip(LEARNED, dparams, strict=True)), dx, None

    reference.__name__ = "training_norm"
    return Layer(reference, forward, backward, init=_init)


def evaluating_norm(eps: float) -> Layer:
    """Make the same for evaluation, the statistics given among the params: -> (y, {}).

    Forward    y = batch_norm_eval(x, gamma, beta, mean, var)          (F1)
    Backward   dx, dgamma, dbeta, dmean, dvar = from g                 (B1) from F1
    """
    norm, names = batch_norm_eval.bind(eps=eps), (*LEARNED, *MEASURED)

    def reference(params: PyTree, x: jax.Array, key: jax.Array | None = None) -> tuple:
        return norm.reference(x, *_of(params, names)), {}  # F1

    def forward(params: PyTree, x: jax.Array, key: jax.Array | None) -> tuple[tuple, Saved]:
        y, of_y = norm.forward(x, *_of(params, names))  # F1
        return (y, {}), of_y

    def backward(res: Saved, g: tuple[jax.Array, PyTree]) -> tuple[PyTree, jax.Array, None]:
        dx, *dparams = norm.backward(res, g[0])  # B1
        return dict(zip(names, dparams, strict=True)), dx, None

    reference.__name__ = "evaluating_norm"
    return Layer(reference, forward, backward, init=_init)


def _of(tree: PyTree, names: tuple[str, ...]) -> list[jax.Array]:
    return [tree[name] for name in names]


def _init(key: jax.Array, x_shape: Shape, dtype: Any = jnp.float32) -> PyTree:
    return {"gamma": jnp.ones(x_shape[-1:], dtype), "beta": jnp.zeros(x_shape[-1:], dtype)}


class MeasuredChainResiduals(NamedTuple):
    layers: dict[str, Saved]


def measured_chain(**layers: Layer) -> Layer:
    """Make a chain of layers that return statistics too: (params, x) -> (y, statistics by name).

    Forward    h_k, statistics_k = f_k(h_{k-1}), k = 1..n              (F1)
    Backward   dh_{k-1}, dparams_k = from dh_k and g_statistics_k,
                   k = n..1                                            (B1) from F1
    """

    def reference(params: PyTree, x: jax.Array, key: jax.Array | None = None) -> tuple:
        check_params("chain", layers, params)
        h, statistics = x, {}
        for name, layer in layers.items():
            h, statistics[name] = layer.reference(params[name], h)  # F1
        return h, statistics

    def forward(
        params: PyTree, x: jax.Array, key: jax.Array | None
    ) -> tuple[tuple, MeasuredChainResiduals]:
        check_params("chain", layers, params)
        h, statistics, saved = x, {}, {}
        for name, layer in layers.items():
            (h, statistics[name]), saved[name] = layer.forward(params[name], h)  # F1
        return (h, statistics), MeasuredChainResiduals(saved)

    def backward(
        res: MeasuredChainResiduals, g: tuple[jax.Array, PyTree]
    ) -> tuple[PyTree, jax.Array, None]:
        (dh, dstatistics), dparams = g, {}
        for name, layer in reversed(layers.items()):
            one = dh, dstatistics[name]
            dparams[name], dh, _ = layer.backward(res.layers[name], one)  # B1
        return dparams, dh, None

    def init(key: jax.Array, x_shape: Shape, dtype: Any = jnp.float32) -> PyTree:
        params, x = {}, jax.ShapeDtypeStruct(x_shape, dtype)
        for k, (name, layer) in enumerate(layers.items()):
            params[name] = layer.init(jax.random.fold_in(key, k), x.shape, dtype)
            x, _ = jax.eval_shape(layer.reference, params[name], x)
        return params

    reference.__name__ = "measured_chain"
    reference.__doc__ = "Run in order: " + ", ".join(layers)
    return Layer(reference, forward, backward, init=init, layers=layers)


def initial(params: PyTree) -> PyTree:
    """The running averages before the first step: means 0 and variances 1, by each norm's path."""
    running = {}
    for name, node in params.items():
        if isinstance(node, Mapping) and "gamma" in node:
            dtype = at_least_float32(node["gamma"].dtype)
            running[name] = {
                "mean": jnp.zeros_like(node["gamma"], dtype),
                "var": jnp.ones_like(node["gamma"], dtype),
            }
        elif isinstance(node, Mapping) and (inner := initial(node)):
            running[name] = inner
    return running


def check_running(owner: str, params: PyTree, running: PyTree) -> None:
    """ValueError where running does not have a mean and a variance for each norm of params."""
    expected: Any = jax.tree.structure(jax.eval_shape(initial, params))
    got = jax.tree.structure(running)
    if got != expected:
        raise ValueError(
            f"{owner}: running must have the mean and var of every norm of params, got {got}. Make "
            "it with initial(params)."
        )


def updated(running: PyTree, statistics: PyTree, momentum: float = 0.1) -> PyTree:
    """The running averages after a step: (1 - momentum) * running + momentum * statistics.

    A plain function for the training step to call; nothing is differentiated through it.

    Args:
        running: a tree of averages, as `initial` makes them.
        statistics: of one batch, the same tree.
        momentum: the share of the batch, from 0 to 1.

    Numerics: variances are biased, as the norm uses them. PyTorch averages unbiased ones: times
        n / (n - 1) for the n numbers of a channel in a batch.
    """
    return jax.tree.map(
        lambda old, new: (1 - momentum) * old + momentum * new.astype(old.dtype),
        running,
        statistics,
    )


def merged(params: PyTree, running: PyTree) -> PyTree:
    """Two trees of dicts as one: a norm's gamma and beta beside its mean and var."""
    both = {name: merged(params[name], running[name]) for name in params.keys() & running.keys()}
    return {**params, **running, **both}


def parted(tree: PyTree) -> tuple[PyTree, PyTree]:
    """What `merged` joined: (the tree without, the tree with nothing but means and variances)."""
    params: dict[str, PyTree] = {}
    running: dict[str, PyTree] = {}
    for name, node in tree.items():
        if not isinstance(node, Mapping):
            (running if name in MEASURED else params)[name] = node
            continue
        params[name], measured = parted(node)
        if measured:
            running[name] = measured
    return params, running


class MeasuredCostResiduals(NamedTuple):
    network: Saved
    loss: Saved
    penalty: Saved | None


def measured_cost(network: Layer, loss: Rule, penalty: Rule | None = None) -> Rule:
    """Make the cost J(params, x, y, strength=None) -> (J, statistics), of a measured network.

    Forward    y_hat, statistics = network(params, x)                  (F1)
               J = loss(y_hat, y) + strength * Omega(params)           (F2)
    Backward   dy_hat = from g_J                                       (B1) from F2
               dparams = from dy_hat and g_statistics                  (B2) from F1
               dparams += strength * g_J * dOmega                      (B3) from F2

    `jaxprop.value_and_grad(J, has_aux=True)` is its gradient.

    Args:
        network: a Layer (params, x) -> (y_hat, statistics).
        loss: a Rule (y_hat, y) -> scalar.
        penalty: a Rule params -> Omega, such as `l2.bind(leaves="*/w")`.

    Returns:
        J, a scalar of float32 at least, and the statistics. strength is lambda, as `cost` has it.

    Residuals: those of the network, the loss and the penalty.

    Raises:
        ValueError: when called, where there is a penalty and no strength or the other way round,
            or the loss is not a scalar.
    """
    term = None if penalty is None else weighted(penalty, "penalty")
    terms = [] if term is None else ["penalty"]
    others = [] if penalty is None else list(penalty.argument_names[1:])

    def cost(
        params: PyTree, x: jax.Array, y: PyTree, strength: PyTree = None
    ) -> tuple[jax.Array, PyTree]:
        check_strength(terms, others, strength)
        y_hat, statistics = network.reference(params, x)  # F1
        J = scalar(loss, loss.reference(y_hat, y))  # F2
        if term is not None:
            J = plus(J, term.reference(params, strength))
        return J, statistics

    def forward(
        params: PyTree, x: jax.Array, y: PyTree, strength: PyTree
    ) -> tuple[tuple[jax.Array, PyTree], MeasuredCostResiduals]:
        check_strength(terms, others, strength)
        (y_hat, statistics), of_network = network.forward(params, x)  # F1
        J, of_loss = loss.forward(y_hat, y)  # F2
        of_penalty = None
        if term is not None:
            omega, of_penalty = term.forward(params, strength)
            J = plus(J, omega)
        return (J, statistics), MeasuredCostResiduals(of_network, of_loss, of_penalty)

    def backward(
        res: MeasuredCostResiduals, g: tuple[jax.Array, PyTree]
    ) -> tuple[PyTree, jax.Array, PyTree, PyTree]:
        g_J, g_statistics = g
        dy_hat, dy = loss.backward(res.loss, g_J)[:2]  # B1
        dparams, dx, _ = network.backward(res.network, (dy_hat, g_statistics))  # B2
        dstrength = None
        if term is not None:
            domega, dstrength = term.backward(res.penalty, g_J)  # B3
            dparams = add_cotangents(dparams, domega)
        return dparams, dx, dy, dstrength

    return Rule(cost, forward, backward)
