"""Recurrent language models: layers of LSTM or GRU cells, one above the other.

`lstm_block` is the text to read: which gradient goes down the layers, and which back in time. B
batch, T time, C width, of what is read and of the states.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.installing import PyTree, Saved
from jaxprop.layers import Layer, Shape, elementwise
from jaxprop.models.inputs import Context
from jaxprop.models.language import (
    Decoder,
    LanguageModel,
    drop_backward,
    drop_forward,
    embedded,
    language_model,
    logits_of,
)
from jaxprop.models.sizes import check_sizes
from jaxprop.precision import at_least_float32
from jaxprop.repetition import repeat
from jaxprop.rules.activations import identity
from jaxprop.rules.dropout import dropout
from jaxprop.rules.gru import gru
from jaxprop.rules.lstm import lstm

Cell = Literal["lstm", "gru"]


@dataclass(frozen=True)
class RecurrentConfig:
    """The shape of a recurrent network.

    vocabulary, width, depth: V, C, the number of layers.
    cell:  what every layer is made of, lstm or gru.
    tied:  whether the table that embeds the tokens is also the last layer.
    save:  what the layers save for the backward pass, as `repeat` has it.
    frozen: how many of the first layers are not trained, nor the table below them.
    dtype: what is computed in, by its name; None for that of the parameters.
    """

    vocabulary: int
    width: int
    depth: int
    cell: Cell = "lstm"
    tied: bool = False
    save: int | None = None
    frozen: int = 0
    dtype: str | None = None

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("vocabulary", "width", "depth")}
        check_sizes("RecurrentConfig", **sizes)
        if self.cell not in get_args(Cell):
            raise ValueError(
                f"RecurrentConfig: cell must be one of {', '.join(get_args(Cell))}, got "
                f"{self.cell!r}."
            )


def recurrent(config: RecurrentConfig) -> LanguageModel:
    """Make a recurrent network: token embedding, layers of cells, last layer.

    A sequence begins with states of zeros. A token sees all before it through the states alone, so
    positions are not read, and segments, which would have to clear the states, are refused.

    Args:
        config: its shape.

    Returns:
        A LanguageModel, whose Inputs may have a dropout rate: after the embedding and after each
        layer, not along time. Its decoder carries the states. Its params are

            embedding                   (V, C)
            blocks, each leaf with a first axis of depth:
                lstm: w_x and w_h (C, 4 C), b (4 C,), the gates i, f, g, o side by side
                gru: w_x and w_h (C, 3 C), b (3 C,), the gates r, z, n side by side; b_n (C,)
            norm                        none: the empty dict
            head                        (C, V), unless tied

        w_x starts as Glorot's uniform and w_h orthogonal, gate by gate, as in Keras: the product
        alone makes neither h nor its gradient smaller or larger from step to step. Biases are 0,
        but that of the forget gate 1, so that c, and its gradient, last for some steps at first.
        The embedding is normal, as in PyTorch; tied, with a deviation of 1 / sqrt(C), as its
        products with h are the logits.

    Source: Zaremba, Sutskever and Vinyals (2014), Recurrent neural network regularization, for the
        stack and its dropout; Jozefowicz, Zaremba and Sutskever (2015), An empirical exploration
        of recurrent network architectures, for the forget gate.
    """
    make, parts = (lstm_block, LSTM) if config.cell == "lstm" else (gru_block, GRU)
    blocks = repeat(make(config), config.depth, save=config.save, frozen=config.frozen)
    return language_model(config, blocks, elementwise(identity), _decoder(config, parts), _init)


class BlockResiduals(NamedTuple):
    """The cell's own, of which h and hs (B, T, C) are the large ones, and dropout's."""

    cell: Saved
    dropout: Saved | None


def lstm_block(config: RecurrentConfig) -> Layer:
    """One layer: an LSTM over the whole sequence, from states of zeros, then dropout.

    A rule over (params, (h, context)), h (B, T, C). What each line's gradient is, line for line:

    Forward    hs = lstm(h, 0, 0, w_x, w_h, b)        (B, T, C)        (F1)
               y = dropout(hs)                        (B, T, C)        (F2)
    Backward   dhs = from dropped g                                    (B1) from F2
               dh, dw_x, dw_h, db = from dhs                           (B2) from F1

    The gradient has two ways to go. Down the layers it goes as here: what comes back to h is the g
    of the layer below, of all steps at once. Back in time it goes inside B2, which `lstm` writes
    out for one step: a step's output is read by the layer above and by the next step, so that the
    two cotangents add; what goes on to the step before passes through the product with w_h, and
    beside it through c, where it is multiplied by the forget gate and nothing else. The weights
    are the same at every step, so that their gradient is the sum over the steps.

    Residuals: BlockResiduals. The gates are computed again, and the mask of dropout is drawn again
        from the key.
    """

    def reference(params: PyTree, x: tuple, key: jax.Array | None = None) -> jax.Array:
        h, context = _checked(x)
        hs, _ = _read_lstm(params, h, (_zeros(h), _zeros(h)))  # F1
        return hs if context.dropout is None else dropout.reference(hs, context.dropout, key)  # F2

    def forward(
        params: PyTree, x: tuple, key: jax.Array | None
    ) -> tuple[jax.Array, BlockResiduals]:
        (h, context), p = _checked(x), params
        (hs, _), of_cell = lstm.forward(h, _zeros(h), _zeros(h), p["w_x"], p["w_h"], p["b"])  # F1
        y, of_dropout = drop_forward(hs, context, key)  # F2
        return y, BlockResiduals(of_cell, of_dropout)

    def backward(res: BlockResiduals, g: jax.Array) -> tuple[PyTree, tuple, None]:
        dhs = drop_backward(res.dropout, g)  # B1
        dh, _, _, dw_x, dw_h, db, _ = lstm.backward(res.cell, (dhs, None))  # B2
        return {"w_x": dw_x, "w_h": dw_h, "b": db}, (dh, None), None

    def init(key: jax.Array, x_shape: Shape, dtype: Any = jnp.float32) -> PyTree:
        c, (of_x, of_h) = config.width, jax.random.split(key)
        b = jnp.zeros((4, c), dtype).at[1].set(1).reshape(-1)
        return {"w_x": _glorot(of_x, c, 4, dtype), "w_h": _orthogonal(of_h, c, 4, dtype), "b": b}

    reference.__name__ = "lstm_block"
    reference.__doc__ = lstm_block.__doc__
    return Layer(reference, forward, backward, init=init)


def gru_block(config: RecurrentConfig) -> Layer:
    """One layer: a GRU over the whole sequence, from a state of zeros, then dropout.

    A rule over (params, (h, context)), h (B, T, C). What each line's gradient is, line for line:

    Forward    hs = gru(h, 0, w_x, w_h, b, b_n)       (B, T, C)        (F1)
               y = dropout(hs)                        (B, T, C)        (F2)
    Backward   dhs = from dropped g                                    (B1) from F2
               dh, dw_x, dw_h, db, db_n = from dhs                     (B2) from F1

    The gradient goes down the layers and back in time as in `lstm_block`; there is no c, and what
    goes back beside the product with w_h is multiplied by z, which keeps the old state.

    Residuals: BlockResiduals, as there.
    """

    def reference(params: PyTree, x: tuple, key: jax.Array | None = None) -> jax.Array:
        h, context = _checked(x)
        hs, _ = _read_gru(params, h, (_zeros(h),))  # F1
        return hs if context.dropout is None else dropout.reference(hs, context.dropout, key)  # F2

    def forward(
        params: PyTree, x: tuple, key: jax.Array | None
    ) -> tuple[jax.Array, BlockResiduals]:
        (h, context), p = _checked(x), params
        (hs, _), of_cell = gru.forward(
            h, _zeros(h), p["w_x"], p["w_h"], p["b"], None, p["b_n"]
        )  # F1
        y, of_dropout = drop_forward(hs, context, key)  # F2
        return y, BlockResiduals(of_cell, of_dropout)

    def backward(res: BlockResiduals, g: jax.Array) -> tuple[PyTree, tuple, None]:
        dhs = drop_backward(res.dropout, g)  # B1
        dh, _, dw_x, dw_h, db, _, db_n = gru.backward(res.cell, (dhs, None))  # B2
        return {"w_x": dw_x, "w_h": dw_h, "b": db, "b_n": db_n}, (dh, None), None

    def init(key: jax.Array, x_shape: Shape, dtype: Any = jnp.float32) -> PyTree:
        c, (of_x, of_h) = config.width, jax.random.split(key)
        biases = {"b": jnp.zeros((3 * c,), dtype), "b_n": jnp.zeros((c,), dtype)}
        return {"w_x": _glorot(of_x, c, 3, dtype), "w_h": _orthogonal(of_h, c, 3, dtype), **biases}

    reference.__name__ = "gru_block"
    reference.__doc__ = gru_block.__doc__
    return Layer(reference, forward, backward, init=init)


def _checked(x: tuple) -> tuple[jax.Array, Context]:
    h, context = x
    if context.segments is not None:
        raise ValueError(
            "recurrent: a sequence must be one document, got segments, and its states go through "
            "all of it. Give each document a row of its own, and the label -1 to what pads it."
        )
    return h, context


def _zeros(h: jax.Array) -> jax.Array:
    """A state before the first step, (B, C)."""
    return jnp.zeros((h.shape[0], h.shape[2]), h.dtype)


class Parts(NamedTuple):
    """What decoding needs of a cell.

    states: how many it has.
    read:   (params, h, states) -> (hs, states), the states after the last step.
    """

    states: int
    read: Callable[[PyTree, jax.Array, tuple], tuple[jax.Array, tuple]]


def _read_lstm(params: PyTree, h: jax.Array, states: tuple) -> tuple[jax.Array, tuple]:
    return lstm.reference(h, *states, params["w_x"], params["w_h"], params["b"])


def _read_gru(params: PyTree, h: jax.Array, states: tuple) -> tuple[jax.Array, tuple]:
    p = params
    hs, state = gru.reference(h, *states, p["w_x"], p["w_h"], p["b"], None, p["b_n"])
    return hs, (state,)


LSTM, GRU = Parts(2, _read_lstm), Parts(1, _read_gru)


def _decoder(config: RecurrentConfig, parts: Parts) -> Decoder:
    """Reads on from the states of every layer, each (depth, B, C); it can read for ever."""

    def empty(params: PyTree, batch: int, size: int) -> tuple:
        dtype = at_least_float32(config.dtype or params["embedding"].dtype)
        return (jnp.zeros((config.depth, batch, config.width), dtype),) * parts.states

    def read(params: PyTree, tokens: jax.Array, states: tuple) -> tuple[jax.Array, tuple]:
        def step(h: jax.Array, at: tuple) -> tuple[jax.Array, tuple]:
            return parts.read(at[0], h, at[1])

        h = embedded(config, params, tokens, None)
        h, states = lax.scan(step, h, (params["blocks"], states))
        return logits_of(params, h), states

    return Decoder(empty, read)


def _glorot(key: jax.Array, width: int, gates: int, dtype: Any) -> jax.Array:
    """(C, gates * C), each gate's part by itself."""
    make = jax.nn.initializers.glorot_uniform(in_axis=0, out_axis=2, batch_axis=1)
    return make(key, (width, gates, width), dtype).reshape(width, -1)


def _orthogonal(key: jax.Array, width: int, gates: int, dtype: Any) -> jax.Array:
    """(C, gates * C), each gate's part by itself."""
    make = jax.nn.initializers.orthogonal()
    parts = [make(k, (width, width), at_least_float32(dtype)) for k in jax.random.split(key, gates)]
    return jnp.concatenate(parts, axis=1).astype(dtype)


def _init(key: jax.Array, config: RecurrentConfig, blocks: Layer, dtype: Any) -> PyTree:
    of_table, of_blocks, of_head = jax.random.split(key, 3)
    shape = (config.vocabulary, config.width)
    scale = config.width**-0.5 if config.tied else 1.0
    params = {
        "embedding": scale * jax.random.normal(of_table, shape, dtype),
        "blocks": blocks.init(of_blocks, (1, 1, config.width), dtype),
        "norm": {},
    }
    if not config.tied:
        params["head"] = jax.nn.initializers.glorot_uniform()(of_head, shape[::-1], dtype)
    return params
