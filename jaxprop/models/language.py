"""What language models share: tokens in, blocks, a norm, the last layer, and the cost.

The blocks are in `gpt2`, `llama` and `recurrent`: there is the text on how backpropagation goes
through them. B batch, T time, C width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprop.array_types import TreeType
from jaxprop.composition import add_cotangents
from jaxprop.installing import PyTree, Saved
from jaxprop.layers import Layer, Shape
from jaxprop.models.inputs import IGNORED, Context, Inputs, context_of
from jaxprop.precision import up
from jaxprop.rule import Rule
from jaxprop.rules.dropout import dropout
from jaxprop.rules.embedding import embedding
from jaxprop.rules.linear import linear, tied_unembedding
from jaxprop.rules.linear_cross_entropy import linear_cross_entropy
from jaxprop.rules.penalties import path_name


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A network over tokens: its parameters, its rules, what it costs, and how it reads on.

    init:    (key, dtype=float32) -> params.
    hidden:  the rule (params, inputs, key=None) -> (B, T, C), the last block's normed output.
    network: the rule (params, inputs, key=None) -> logits (B, T, V), all of them.
    cost:    the rule J(params, inputs, labels, key=None), the mean of -log p(label) in nats over
             the labels that are not -1, of which the logits are never whole.
    decoder: the network in plain JAX, a few tokens at a time.
    """

    config: Any
    init: Callable[..., PyTree]
    hidden: Layer
    network: Layer
    cost: Rule
    decoder: "Decoder"


class Decoder(NamedTuple):
    """A network that remembers what it has read; there is no gradient to compute.

    empty: (params, batch, size) -> past, the memory before the first of up to `size` tokens.
           ValueError where the network cannot read so many.
    read:  (params, tokens (B, T), past) -> (logits (B, T, V), past): the logits after each of some
           tokens that follow those read before, those of the network on all of them at once but
           for rounding.
    """

    empty: Callable[[PyTree, int, int], PyTree]
    read: Callable[[PyTree, jax.Array, PyTree], tuple[jax.Array, PyTree]]


def language_model(
    config: Any, blocks: Layer, norm: Layer, decoder: Decoder, init: Callable[..., PyTree]
) -> LanguageModel:
    """Make a language model of its blocks and its last norm.

    Args:
        config: has `dtype`, what is computed in, by its name, or None.
        blocks: a Layer over (params["blocks"], (h, Context)).
        norm: a Layer over (params["norm"], h).
        decoder: the same network, a few tokens at a time.
        init: (key, config, blocks, dtype) -> params: "embedding", "blocks", "norm", "head" unless
            tied, and "positions" where positions are learned and added to the embedding.
    """

    def make(key: jax.Array, dtype: Any = jnp.float32) -> PyTree:
        return init(key, config, blocks, dtype)

    hidden = _hidden(config, blocks, norm, make)
    return LanguageModel(config, make, hidden, _network(hidden, make), _cost(hidden), decoder)


class EmbeddedResiduals(NamedTuple):
    """Of the two tables and of dropout; None where there is none."""

    table: Saved
    positions: Saved | None
    dropout: Saved | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HiddenResiduals:
    """Of the three lines; and whether params have a last layer, which is not used here."""

    embedded: EmbeddedResiduals
    blocks: Saved
    norm: Saved
    has_head: bool = field(metadata={"static": True})


def _hidden(config: Any, blocks: Layer, norm: Layer, make: Callable[..., PyTree]) -> Layer:
    """The network up to the last layer.

    Forward    h_0 = embedding[tokens] (+ positions[position]; dropped out)   (F1)
               h_k = block_k(h_{k-1}, context), k = 1..n                      (F2)
               y = norm(h_n)                                                  (F3)
    Backward   dh_n, dnorm = from g                                           (B1) from F3
               dh_{k-1}, dblock_k = from dh_k, k = n..1                       (B2) from F2
               dembedding, dpositions = from dh_0                             (B3) from F1
    """

    def reference(params: PyTree, x: Inputs, key: jax.Array | None = None) -> jax.Array:
        context, (of_h, of_blocks) = context_of(params, x), two_keys(key)
        h = embedded(config, params, x.tokens, context.positions)  # F1
        if x.dropout is not None:
            h = dropout.reference(h, x.dropout, of_h)
        h = blocks.reference(params["blocks"], (h, context), of_blocks)  # F2
        return norm.reference(params["norm"], h)  # F3

    def forward(
        params: PyTree, x: Inputs, key: jax.Array | None
    ) -> tuple[jax.Array, HiddenResiduals]:
        context, (of_h, of_blocks) = context_of(params, x), two_keys(key)
        h, of_table = embedding.forward(x.tokens, params["embedding"])  # F1
        of_positions = None
        if "positions" in params:
            added, of_positions = embedding.forward(context.positions, params["positions"])
            h = h + added
        h = h.astype(config.dtype or h.dtype)
        h, of_dropout = drop_forward(h, context, of_h)
        embedded = EmbeddedResiduals(of_table, of_positions, of_dropout)
        h, of_blocks = blocks.forward(params["blocks"], (h, context), of_blocks)  # F2
        y, of_norm = norm.forward(params["norm"], h)  # F3
        return y, HiddenResiduals(embedded, of_blocks, of_norm, "head" in params)

    def backward(res: HiddenResiduals, g: jax.Array) -> tuple[PyTree, None, None]:
        dnorm, dh, _ = norm.backward(res.norm, g)  # B1
        dblocks, (dh, _), _ = blocks.backward(res.blocks, dh)  # B2
        dparams = {"blocks": dblocks, "norm": dnorm} | _embedded_backward(res.embedded, dh)  # B3
        return dparams | ({"head": None} if res.has_head else {}), None, None

    def init(key: jax.Array, x_shape: Shape, dtype: Any = jnp.float32) -> PyTree:
        return make(key, dtype)

    reference.__name__ = "hidden"
    reference.__doc__ = "The last block's output, normed."
    return Layer(reference, forward, backward, init=init)


def _embedded_backward(res: EmbeddedResiduals, dh: jax.Array | None) -> dict[str, PyTree]:
    """The tables' cotangents by name; None where frozen blocks hand no dh down to them."""
    if dh is None:
        return dict.fromkeys(["embedding"] + ["positions"] * (res.positions is not None))
    dh = drop_backward(res.dropout, dh)
    _, dembedding = embedding.backward(res.table, dh)
    if res.positions is None:
        return {"embedding": dembedding}
    _, dpositions = embedding.backward(res.positions, _summed_to(res.positions.output, dh))
    return {"embedding": dembedding, "positions": dpositions}


def embedded(
    config: Any, params: PyTree, tokens: jax.Array, positions: jax.Array | None
) -> jax.Array:
    """h_0 in plain JAX: the tokens' rows, and those of learned positions where there are any."""
    h = embedding.reference(tokens, params["embedding"])
    if "positions" in params:
        h = h + embedding.reference(positions, params["positions"])
    return h.astype(config.dtype or h.dtype)


def logits_of(params: PyTree, h: jax.Array) -> jax.Array:
    """The last layer in plain JAX, tied or not."""
    if "head" in params:
        return linear.reference(h, params["head"])
    return tied_unembedding.reference(h, params["embedding"])


class NetworkResiduals(NamedTuple):
    hidden: Saved
    head: Saved


def _network(hidden: Layer, make: Callable[..., PyTree]) -> Layer:
    """The network with every logit: for evaluation, and for losses of one's own.

    Forward    h = hidden(tokens)                                             (F1)
               logits = h @ head, head = embedding.T where tied               (F2)
    Backward   dh, dhead = from g                                             (B1) from F2
               dparams = from dh; where tied, dembedding += dhead.T           (B2) from F1, F2
    """

    def reference(params: PyTree, x: Inputs, key: jax.Array | None = None) -> jax.Array:
        h = hidden.reference(params, x, key)  # F1
        return logits_of(params, h)  # F2

    def forward(
        params: PyTree, x: Inputs, key: jax.Array | None
    ) -> tuple[jax.Array, NetworkResiduals]:
        h, of_hidden = hidden.forward(params, x, key)  # F1
        if "head" in params:
            logits, of_head = linear.forward(h, params["head"])  # F2
        else:
            logits, of_head = tied_unembedding.forward(h, params["embedding"])
        return logits, NetworkResiduals(of_hidden, of_head)

    def backward(res: NetworkResiduals, g: jax.Array) -> tuple[PyTree, None, None]:
        tied = _is_tied(res.hidden)
        dh, dhead, *_ = (tied_unembedding if tied else linear).backward(res.head, g)  # B1
        dparams, *_ = hidden.backward(res.hidden, dh)  # B2
        return _with_head(dparams, dhead, tied), None, None

    def init(key: jax.Array, x_shape: Shape, dtype: Any = jnp.float32) -> PyTree:
        return make(key, dtype)

    reference.__name__ = "network"
    reference.__doc__ = "The logits of the next token, (B, T, V)."
    return Layer(reference, forward, backward, init=init)


class CostResiduals(NamedTuple):
    hidden: Saved
    loss: Saved


def _cost(hidden: Layer) -> Rule:
    """J: Algorithm 6.3 forward and 6.4 backward, the last layer and the loss taken as one.

    Forward    h = hidden(tokens)                                             (F1)
               J = mean cross-entropy of h @ head, head = embedding.T if tied (F2)
    Backward   dh, dhead = from g                                             (B1) from F2
               dparams = from dh; where tied, dembedding += dhead.T           (B2) from F1, F2
    """
    loss = linear_cross_entropy.bind(ignore_index=IGNORED)

    def cost(
        params: PyTree, x: Inputs, labels: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        h = hidden.reference(params, x, key)  # F1
        return loss.reference(h, _head(params), labels)  # F2

    def forward(
        params: PyTree, x: Inputs, labels: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, CostResiduals]:
        h, of_hidden = hidden.forward(params, x, key)  # F1
        J, of_loss = loss.forward(h, _head(params), labels)  # F2
        return J, CostResiduals(of_hidden, of_loss)

    def backward(res: CostResiduals, g: jax.Array) -> tuple[PyTree, None, None, None]:
        dh, dhead, *_ = loss.backward(res.loss, g)  # B1
        dparams, *_ = hidden.backward(res.hidden, dh)  # B2
        tied = _is_tied(res.hidden)
        return _with_head(dparams, dhead.T if tied else dhead, tied), None, None, None

    return Rule(cost, forward, backward)


def _is_tied(hidden: Saved) -> bool:
    return not hidden.residuals.has_head


def _head(params: PyTree) -> jax.Array:
    return params["head"] if "head" in params else params["embedding"].T


def _with_head(dparams: PyTree, dhead: jax.Array, tied: bool) -> PyTree:
    """The cotangents with that of the last layer: two of one table add."""
    if tied:
        return dparams | {"embedding": add_cotangents(dparams["embedding"], dhead)}
    return dparams | {"head": dhead}


def two_keys(key: jax.Array | None) -> tuple[jax.Array | None, jax.Array | None]:
    """A key for each of two uses, or none."""
    return (None, None) if key is None else tuple(jax.random.split(key))


def drop_forward(
    x: jax.Array, context: Context, key: jax.Array | None
) -> tuple[jax.Array, Saved | None]:
    """Dropout at the context's rate; as it is where there is none."""
    return (x, None) if context.dropout is None else dropout.forward(x, context.dropout, key)


def drop_backward(saved: Saved | None, g: jax.Array) -> jax.Array:
    return g if saved is None else dropout.backward(saved, g)[0]


def _summed_to(kind: TreeType, dh: jax.Array) -> jax.Array:
    """dh as the cotangent of position rows, which are shared by the batch where they are (T, C)."""
    return dh if len(kind.leaves[0].shape) == dh.ndim else jnp.sum(up(dh), axis=0)


def normal_weights(key: jax.Array, shape: Shape, dtype: Any, scale: float = 1.0) -> jax.Array:
    """Normal with a standard deviation of 0.02, times a scale."""
    return 0.02 * scale * jax.random.normal(key, shape, dtype)


def matrices(params: PyTree) -> PyTree:
    """Which leaves are matrices, as booleans: those with weight decay, as it is usual.

    By name: a block's biases and gammas are stacked, and have two axes as well. A matrix with an
    adapter has its parts below its name.
    """

    def is_matrix(path: tuple, leaf: jax.Array) -> bool:
        names = path_name(path).split("/")
        tables = ("embedding", "positions", "head")
        return names[-1] in tables or any(name.startswith("w_") for name in names)

    return jax.tree_util.tree_map_with_path(is_matrix, params)
