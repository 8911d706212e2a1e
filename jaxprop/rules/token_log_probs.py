"""Logarithms of the probabilities of chosen tokens: what preference and policy losses need."""

import jax
import jax.numpy as jnp

from jaxprop.installing import Saved
from jaxprop.precision import floating
from jaxprop.rule import Case, Rule
from jaxprop.rules.cross_entropy import softmax_cross_entropy, softmax_cross_entropy_cases
from jaxprop.rules.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_cases
from jaxprop.rules.logit_blocks import LinearInputs, check_linear


def token_log_probs_reference(
    logits: jax.Array, tokens: jax.Array, *, ignore_index: int | None = None
) -> jax.Array:
    """Logarithm of the probability that softmax(logits) gives each token.

    Use it for sequence probabilities, preference and policy losses. Where logits are h @ w,
    linear_token_log_probs never holds them.

    Scope      rows: logits (B, V), tokens (B,), none ignored
    Forward    lse = log(sum(exp(logits)))                             (F1)
               log_p = logits - lse                                    (F2)
               q = one_hot(tokens, logits)                             (F3)
               y = sum_rows((q * log_p).T)                             (F4)
    Backward   dlog_p = column(g) * q                                  (B1) from F4
               dlse = -sum(dlog_p)                                     (B2) from F2
               dlogits = dlog_p + dlse * exp(log_p)                    (B3) from F1, F2

    Args:
        logits: (..., V), floating.
        tokens: (...), integers from 0 to V - 1; no cotangent.
        ignore_index: the token that marks places to leave out, such as -1 for padding.

    Returns:
        y: (...), in nats, float32 at least; 0 where the token is ignored.

    Residuals: those of softmax_cross_entropy, of which y is minus the value: the arguments, and
        two numbers per token.

    Numerics: those of softmax_cross_entropy. A token outside 0 to V - 1 gives nan.

    Raises:
        TypeError: where logits are not floating, or tokens not integers.
        ValueError: where the shapes do not fit.

    Source: Goodfellow, Bengio and Courville, Deep Learning, section 6.2.2.3.
    """
    _check(logits, tokens)
    loss = softmax_cross_entropy.reference(
        logits, tokens, reduction="none", ignore_index=ignore_index
    )
    return -loss  # F4


def token_log_probs_forward(
    logits: jax.Array, tokens: jax.Array, *, ignore_index: int | None
) -> tuple[jax.Array, Saved]:
    _check(logits, tokens)
    loss, saved = softmax_cross_entropy.forward(
        logits, tokens, reduction="none", ignore_index=ignore_index
    )
    return -loss, saved  # F4


def token_log_probs_backward(res: Saved, g: jax.Array) -> tuple[jax.Array, None]:
    dlogits, *_ = softmax_cross_entropy.backward(res, -g)  # B1, B2, B3
    return dlogits, None


def linear_token_log_probs_reference(
    h: jax.Array,
    w: jax.Array,
    tokens: jax.Array,
    soft_cap: jax.Array | None = None,
    *,
    ignore_index: int | None = None,
    block: int = 128,
) -> jax.Array:
    """Logarithm of the probability that softmax(h @ w) gives each token; logits are never whole.

    Use it for preference and policy losses of a language model: every token has a cotangent of
    its own, and only a block of rows of logits is held, forward and backward.

    Scope      rows: h (N, D), w (D, V), tokens (N,), none ignored; what is absent: a soft_cap
               without bound
    Forward    a = h @ w                                               (F1)
               u = tanh(a / soft_cap)                                  (F2)
               logits = soft_cap * u                                   (F3)
               lse = log(sum(exp(logits)))                             (F4)
               log_p = logits - lse                                    (F5)
               q = one_hot(tokens, logits)                             (F6)
               y = sum_rows((q * log_p).T)                             (F7)
    Backward   dlog_p = column(g) * q                                  (B1) from F7
               dlse = -sum(dlog_p)                                     (B2) from F5
               dlogits = dlog_p + dlse * exp(log_p)                    (B3) from F4, F5
               dsoft_cap = sum_all(
                   dlogits * (u - a / soft_cap * (1 - u * u)))         (B4) from F2, F3
               da = dlogits * (1 - u * u)                              (B5) from F2, F3
               dh = da @ w.T                                           (B6) from F1
               dw = h.T @ da                                           (B7) from F1

    Args:
        h: (N, D), floating; or (..., D), every axis but the last being rows.
        w: (D, V), floating; taken in h's dtype.
        tokens: (N,), integers from 0 to V - 1; no cotangent.
        soft_cap: a positive scalar that logits stay within, by tanh. None for no cap.
        ignore_index: the token that marks rows to leave out, such as -1 for padding.
        block: how many rows of logits are held at once.

    Returns:
        y: (N,), in nats, float32 at least; 0 where the token is ignored.

    Residuals: those of the recompute variant of linear_cross_entropy, of which y is minus the
        value: the arguments, and two numbers per token.
        Slower than automatic differentiation (1.2 of its time on a CPU), because h @ w is taken
        again in the backward: four products of N x V where held logits need three.

    Numerics: those of linear_cross_entropy.

    Raises:
        TypeError: where h or w are not floating, or tokens not integers.
        ValueError: where the shapes do not fit, or block is not a positive integer. With
            Explicit mesh axes, a batch of more rows than a block: use Auto axes.

    Source: Goodfellow, Bengio and Courville, Deep Learning, section 6.2.2.3.
    """
    _check_linear(h, w, tokens, soft_cap, block)
    loss = linear_cross_entropy.reference(
        h, w, tokens, None, None, None, soft_cap, reduction="none", ignore_index=ignore_index
    )
    return -loss  # F7


def linear_token_log_probs_forward(
    h: jax.Array,
    w: jax.Array,
    tokens: jax.Array,
    soft_cap: jax.Array | None,
    *,
    ignore_index: int | None,
    block: int,
) -> tuple[jax.Array, Saved]:
    _check_linear(h, w, tokens, soft_cap, block)
    options = {"reduction": "none", "ignore_index": ignore_index, "block": block}
    loss, saved = linear_cross_entropy.forward(h, w, tokens, None, None, None, soft_cap, **options)
    return -loss, saved  # F7


def linear_token_log_probs_backward(
    res: Saved, g: jax.Array
) -> tuple[jax.Array, jax.Array, None, jax.Array | None]:
    dh, dw, *_, dsoft_cap = linear_cross_entropy.backward(res, -g)  # B1 to B7
    return dh, dw, None, dsoft_cap


def _check(logits: jax.Array, tokens: jax.Array) -> None:
    owner = "token_log_probs"
    floating(owner, "logits", logits)
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(
            f"{owner}: tokens must be integers, got {tokens.dtype}. Convert them with "
            "tokens.astype."
        )
    if logits.ndim < 1 or logits.shape[-1] < 1 or tokens.shape != logits.shape[:-1]:
        raise ValueError(
            f"{owner}: logits must be (..., V) with V of at least 1, and tokens (...), got logits "
            f"{logits.shape} and tokens {tokens.shape}. Give each row of logits one token."
        )


def _check_linear(
    h: jax.Array, w: jax.Array, tokens: jax.Array, soft_cap: jax.Array | None, block: int
) -> None:
    inputs = LinearInputs(h, w, tokens, soft_cap=soft_cap)
    check_linear("linear_token_log_probs", "tokens", inputs, block)


def token_log_probs_cases() -> list[Case]:
    every = {case.name: case.args for case in softmax_cross_entropy_cases()}
    (logits, tokens), ignoring = every["classes"], {"ignore_index": -1}
    rows = {"logits": logits, "tokens": tokens}
    return [
        Case("rows", (logits, tokens)),
        Case("ignored", every["ignored"][:2], ignoring, given=rows),
        Case("batch of one", every["batch of one"]),
        Case("one row without a batch", every["one example without a batch"], given=rows),
        Case("more axes", every["more axes"], given=rows),
        Case("bfloat16", every["bfloat16"][:2]),
        Case("ties", every["ties"], edge=True),
        Case("large", every["large"], edge=True),
        Case("masked class", every["masked class"], edge=True),
        Case("masked token", every["masked label"], edge=True),
        Case("token out of range", every["label out of range"], edge=True),
        Case("ignored nan", every["ignored nan"], ignoring, edge=True),
        Case("empty", every["empty"], edge=True),
    ]


def linear_token_log_probs_cases() -> list[Case]:
    every = {case.name: case.args for case in linear_cross_entropy_cases()}
    h, w, tokens, *_, cap = every["everything"]
    two, ignoring = {"block": 2}, {"block": 2, "ignore_index": -1}
    given = {"soft_cap": 30 * cap}
    rows = given | {"h": h, "w": w, "tokens": tokens}
    return [
        Case("blocks of 2", (h, w, tokens), two, given=given),
        Case("capped", (h, w, tokens, cap), two),
        Case("ignored", (*every["sum"][:3], cap), ignoring, given=rows),
        Case("one row", every["one row"], two, given=given),
        Case("more axes", every["more axes"], two, given=rows),
        Case("bfloat16", every["bfloat16"], two, given=rows),
        Case("zeros", every["zeros"], two, given=given, edge=True),
        Case("large", every["large"], two, edge=True),
        Case("ignored nan", every["ignored nan"], ignoring, edge=True),
        Case("no row", every["no row"], two, edge=True),
    ]


token_log_probs = Rule(
    token_log_probs_reference,
    token_log_probs_forward,
    token_log_probs_backward,
    token_log_probs_cases,
    budget=8,
)
linear_token_log_probs = Rule(
    linear_token_log_probs_reference,
    linear_token_log_probs_forward,
    linear_token_log_probs_backward,
    linear_token_log_probs_cases,
    budget=8,
)
