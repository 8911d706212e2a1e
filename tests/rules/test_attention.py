"""Attention: peers, masks of every kind, rows that see nothing, tiles, memory, low precision."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop import attention
from jaxprop.rules.attention_operands import Reach
from jaxprop.rules.blockwise_attention import tiles_of
from tests.rules.low_precision import assert_no_worse
from tests.rules.oracle import double
from tests.rules.peers import assert_agrees_with_jax, assert_agrees_with_torch
from tests.rules.refusing import assert_refuses, not_floating
from tests.subjects import pattern
from tests.tolerances import assert_near

NONE = (None,) * 8


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def heads(queries: int = 7, keys: int = 7, key_heads: int = 4, batch: int = 2) -> list[jax.Array]:
    """q, k and v with 4 query heads of 8 features."""
    q = normal(0, batch, queries, 4, 8)
    return [q, *(normal(seed, batch, keys, key_heads, 8) for seed in (1, 2))]


def both(*args: jax.Array | None, **options: Any) -> tuple[jax.Array, tuple]:
    """The value, and the cotangents for one g."""
    out, saved = attention.forward(*args, **options)
    return out, attention.backward(saved, pattern(out))


# Peers


def in_jax(**options: Any) -> Callable:
    """JAX's own attention, which takes its softmax in float32 whatever it is given."""

    def peer(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        with jax.numpy_dtype_promotion("standard"):
            return jax.nn.dot_product_attention(q, k, v, **options)

    return peer


JAX_WAYS: dict[str, tuple[list, dict, dict]] = {
    "causal": (heads(), {"causal": True}, {"is_causal": True}),
    "not causal": (heads(), {"causal": False}, {}),
    "grouped": (heads(key_heads=2), {"causal": True}, {"is_causal": True}),
    "one key head": (heads(keys=5, key_heads=1), {"causal": False}, {}),
    "window": (
        heads(),
        {"causal": True, "window": 3},
        {"is_causal": True, "local_window_size": (2, 0)},
    ),
    "symmetric window": (
        heads(),
        {"causal": False, "window": 3},
        {"local_window_size": (2, 2)},
    ),
    "first query at the first key": (
        heads(queries=5),
        {"causal": True, "query_offset": 0},
        {"is_causal": True},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("args", "options", "theirs"), JAX_WAYS.values(), ids=JAX_WAYS)
def test_is_attention_in_jax(args: list, options: dict, theirs: dict) -> None:
    peer = in_jax(**theirs)
    assert_agrees_with_jax(attention, peer, args, reduced=64, block_size=3, **options)


@pytest.mark.slow
def test_is_attention_in_jax_with_mask_scale_and_bias() -> None:
    args = heads(keys=5, key_heads=2)
    mask, scale, bias = normal(3, 2, 1, 7, 5) > -1, jnp.float32(0.3), normal(4, 1, 4, 7, 5)

    def peer(q: jax.Array, k: jax.Array, v: jax.Array, *others: jax.Array) -> jax.Array:
        mask, scale, bias = others
        return in_jax(bias=bias, mask=mask, scale=1.0)(scale * q, k, v)

    args = [*args, mask, scale, bias]
    assert_agrees_with_jax(attention, peer, args, reduced=64, causal=False, block_size=3)


@pytest.mark.slow
@pytest.mark.peers
@pytest.mark.parametrize(("causal", "key_heads"), [(True, 4), (False, 4), (True, 2)])
@pytest.mark.usefixtures("x64")
def test_is_attention_in_torch(causal: bool, key_heads: int) -> None:
    def peer(torch: Any, q: Any, k: Any, v: Any) -> Any:
        heads_first = [x.transpose(1, 2) for x in (q, k, v)]
        function = torch.nn.functional.scaled_dot_product_attention
        grouped = key_heads != 4
        return function(*heads_first, is_causal=causal, enable_gqa=grouped).transpose(1, 2)

    args = double(heads(key_heads=key_heads))
    assert_agrees_with_torch(attention, peer, args, reduced=64, causal=causal, block_size=3)


# What a query sees


def test_segments_are_attention_within_each_document() -> None:
    q, k, v = heads(batch=1)
    segments = jnp.array([0, 0, 0, 1, 1, 1, 1])
    packed = attention(q, k, v, *NONE[:3], segments, segments, causal=True)
    apart = [attention(*(x[:, part] for x in (q, k, v)), causal=True) for part in PARTS]
    assert_near(packed, jnp.concatenate(apart, axis=1), reduced=8)


PARTS = (slice(0, 3), slice(3, 7))


def test_decoding_from_a_cache_gives_the_last_rows() -> None:
    q, k, v = heads()
    whole = attention(q, k, v, causal=True)
    assert_near(attention(q[:, -1:], k, v, causal=True), whole[:, -1:], reduced=8)
    assert_near(attention(q[:, 2:4], k, v, causal=True, query_offset=2), whole[:, 2:4], reduced=8)


def test_a_window_of_one_is_the_token_itself() -> None:
    q, k, v = heads()
    for causal in (True, False):
        np.testing.assert_array_equal(attention(q, k, v, causal=causal, window=1), v)


def test_a_soft_cap_bounds_the_scores_before_the_bias_is_added() -> None:
    """Scores of 1e6 are 1 and -1 under a cap of 1, to which the bias adds log(3)."""
    q, k = jnp.array([[1e3]]), jnp.array([[1e3], [-1e3]])
    v, bias = jnp.array([[1.0], [0.0]]), jnp.array([0.0, np.log(3.0)])
    out = attention(q, k, v, None, None, bias, causal=False, soft_cap=1.0)
    assert_near(out, jnp.array([[np.e / (np.e + 3 / np.e)]]))


@pytest.mark.parametrize(
    "how",
    [
        "mask",
        pytest.param("bias of -inf", marks=pytest.mark.slow),
        pytest.param("segments", marks=pytest.mark.slow),
        pytest.param("position", marks=pytest.mark.slow),
    ],
)
def test_a_query_that_sees_nothing_gives_0_and_gets_0(how: str) -> None:
    q, k, v = heads()
    blind = jnp.arange(7) == 2
    args, options = {
        "mask": ((~blind[:, None],), {"causal": False}),
        "bias of -inf": ((None, None, jnp.where(blind, -jnp.inf, 0.0)[:, None]), {"causal": False}),
        "segments": ((*NONE[:3], blind.astype(int), jnp.zeros(7, int)), {"causal": False}),
        "position": ((), {"causal": True, "query_offset": -3}),
    }[how]
    out, (dq, dk, dv, *others) = both(q, k, v, *args, block_size=3, **options)
    rows = slice(0, 3) if how == "position" else slice(2, 3)
    np.testing.assert_array_equal(out[:, rows], 0.0)
    np.testing.assert_array_equal(dq[:, rows], 0.0)
    assert bool(jnp.all(out[:, 3:] != 0))
    assert all(bool(jnp.all(jnp.isfinite(d))) for d in (dq, dk, dv, *others) if d is not None)


def test_a_key_that_nobody_sees_gets_0() -> None:
    q, k, v = heads()
    _, (_, dk, dv, *_) = both(q, k, v, jnp.arange(7) != 4, causal=False, block_size=3)
    np.testing.assert_array_equal(dk[:, 4], 0.0)
    np.testing.assert_array_equal(dv[:, 4], 0.0)


@pytest.mark.slow
def test_the_cotangent_of_a_bias_is_summed_over_what_it_is_broadcast_over() -> None:
    q, k, v = heads(keys=5, key_heads=2)
    whole = jnp.zeros((2, 4, 7, 5))
    dwhole = both(q, k, v, None, None, whole, causal=False, block_size=3)[1][5]
    for shape in [(4, 7, 5), (2, 1, 7, 1), (5,)]:
        dbias = both(q, k, v, None, None, jnp.zeros(shape), causal=False, block_size=3)[1][5]
        axes = tuple(i for i, n in enumerate((1,) * (4 - len(shape)) + shape) if n == 1)
        total = jnp.sum(dwhole, axis=axes, keepdims=True).reshape(shape)
        assert_near(dbias + 1, total + 1, reduced=280)  # rows of dbias sum to 0


# Tiles

LENGTHS = [(7, 7), (5, 11), (11, 5), (1, 9), (13, 1)]
REACHES = [
    Reach(False, None, 0),
    Reach(True, None, 0),
    Reach(True, None, 3),
    Reach(True, None, -4),
    Reach(True, 3, 0),
    Reach(False, 2, 2),
]


@pytest.mark.parametrize("block_size", [1, 2, 3, 5, 128])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_tiles_hold_every_entry_in_reach_once_and_none_is_without_one(
    lengths: tuple[int, int], block_size: int
) -> None:
    for reach in REACHES:
        seen = np.asarray(reach.sees(np.arange(lengths[0])[:, None], np.arange(lengths[1])))
        tiles = tiles_of(*lengths, reach, block_size)
        held = np.zeros(lengths, int)
        for _, q_start, q_new, k_start, k_new in zip(*tiles.starts, strict=True):
            new = np.s_[q_new : q_start + tiles.queries, k_new : k_start + tiles.keys]
            held[new] += 1
            assert seen[new].any()
        assert held.max(initial=0) <= 1
        assert (held[seen] == 1).all()


def test_tiles_out_of_reach_are_not_computed() -> None:
    def number(window: int | None) -> int:
        return len(tiles_of(2048, 2048, Reach(True, window, 0), 128).starts.q_start)

    assert number(None) == 16 * 17 // 2
    assert number(256) == 16 + 15 + 14
    assert len(tiles_of(2048, 2048, Reach(False, None, 0), 128).starts.q_start) == 256


def test_one_tile_holds_many_keys_of_few_queries() -> None:
    tiles = tiles_of(1, 10_000, Reach(True, None, 9_999), 128)
    assert (tiles.queries, tiles.keys) == (1, 10_000)


def test_a_tile_is_of_several_heads_where_sequences_are_short_and_of_one_where_long() -> None:
    def cut(length: int, key_heads: int = 6, groups: int = 1) -> tuple[int, int, int, list]:
        tiles = tiles_of(length, length, Reach(False, None, 0), 128, key_heads, groups)
        return tiles.heads, tiles.queries, tiles.keys, sorted(set(tiles.starts.head.tolist()))

    assert cut(16) == (6, 16, 16, [0])
    assert cut(32) == (3, 32, 32, [0, 3])
    assert cut(64) == (1, 64, 64, [0, 1, 2, 3, 4, 5])
    assert cut(256) == (1, 128, 128, [0, 1, 2, 3, 4, 5])
    assert cut(256, key_heads=2, groups=4) == (1, 32, 128, [0, 1])


def test_every_head_is_cut_into_the_same_tiles() -> None:
    tiles = tiles_of(300, 300, Reach(True, None, 0), 128, key_heads=3)
    by_head: list[set] = [set() for _ in range(3)]
    for head, *starts in zip(*tiles.starts, strict=True):
        by_head[head].add(tuple(starts))
    assert by_head[0] == by_head[1] == by_head[2]
    assert sum(map(len, by_head)) == len(tiles.starts.head)


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [2, 5])
def test_nothing_depends_on_the_block_size(block_size: int) -> None:
    """With everything that is cut into tiles, at lengths that no block divides."""
    segments = jnp.array([[0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 2, 2, 2]])
    args = (
        *heads(key_heads=2),
        normal(3, 2, 1, 7, 7) > -1,
        jnp.float32(0.7),
        normal(4, 4, 7, 7),
        segments,
        segments,
    )
    options: dict[str, Any] = {"causal": True, "window": 5, "soft_cap": 2.0}
    cut, whole = (
        jax.jit(lambda *args, n=n: both(*args, **options, block_size=n))(*args)
        for n in (block_size, 128)
    )
    assert_near(cut, whole, reduced=64)


def intermediates(jaxpr: Any) -> Iterator[jax.core.ShapedArray]:
    """The types of all that a program computes, inside loops too."""
    for equation in jaxpr.eqns:
        yield from (out.aval for out in equation.outvars)
        for parameter in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(parameter, "jaxpr", None)
            if inner is not None:
                yield from intermediates(getattr(inner, "jaxpr", inner))


def test_no_array_grows_with_the_square_of_the_length() -> None:
    def largest(length: int) -> int:
        q = jnp.zeros((1, length, 2, 4))
        program = jax.make_jaxpr(lambda q: both(q, q, q, causal=True, block_size=128))(q)
        return max(aval.size for aval in intermediates(program.jaxpr))

    assert largest(2048) <= 2 * 128 * 128
    assert largest(8192) == 8192 * 2 * 4


def test_two_numbers_per_query_and_head_are_saved() -> None:
    q, k, v = heads()
    out, saved = attention.forward(q, k, v, causal=True)
    free = {id(x) for x in (q, k, v, out)}
    kept = [x for x in jax.tree.leaves(saved) if id(x) not in free]
    assert [(x.size, x.dtype) for x in kept] == 2 * [(2 * 7 * 4, jnp.float32)]


# Precision


@pytest.mark.slow
def test_bfloat16_is_no_worse_than_automatic_differentiation_of_plain_code() -> None:
    def draw(seed: int) -> tuple:
        keys = jax.random.split(jax.random.key(seed), 3)
        return tuple(jax.random.normal(key, (1, 48, 2, 16), jnp.bfloat16) for key in keys)

    rule = attention.bind(causal=True)
    assert_no_worse(rule, rule.reference, draw)


@pytest.mark.slow
@pytest.mark.parametrize("length", [512, 1024, 2048])
@pytest.mark.parametrize("block_size", [128, 512, 2048])
def test_float32_under_jit_is_right_at_the_lengths_people_use(length: int, block_size: int) -> None:
    """XLA has miscompiled a right backward at these, for some cotangents and not for others."""
    q, k, v = (normal(seed, 1, length, 2, 64) for seed in (0, 1, 2))
    by_hand = jax.jit(gradients(attention.bind(causal=True, block_size=block_size)))
    with jax.enable_x64(True):
        true = jax.jit(gradients(lambda *args: attention.reference(*args, causal=True)))
    for seed in (3, 4, 5, 6):
        g = normal(seed, 1, length, 2, 64) * 10.0 ** (seed - 4)
        got = by_hand(q, k, v, g)
        with jax.enable_x64(True):
            assert_near(got, true(*double([q, k, v, g])), reduced=64, dtype="float32")


def gradients(function: Callable) -> Callable:
    def run(q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array) -> tuple:
        out, pullback = jax.vjp(function, q, k, v)
        return out, pullback(g)

    return run


# Refusals

Q, K = np.ones((2, 7, 4, 8), np.float32), np.ones((2, 5, 2, 8), np.float32)


def refuses(args: tuple, error: type[Exception], message: str, **options: Any) -> None:
    args = tuple(None if arg is None else jnp.asarray(arg) for arg in args)
    assert_refuses(attention, args, error, message, **{"causal": False, **options})


def test_what_has_the_wrong_dtype_is_refused() -> None:
    for i, name in enumerate(("q", "k", "v")):
        args = [Q, K, K]
        args[i] = args[i].astype(np.int32)
        refuses(tuple(args), TypeError, not_floating("attention", name, "int32"))
    scale, bias = np.int32(2), np.ones(5, np.int32)
    refuses((Q, K, K, None, scale), TypeError, not_floating("attention", "scale", "int32"))
    refuses((Q, K, K, None, None, bias), TypeError, not_floating("attention", "bias", "int32"))
    message = (
        "attention: mask must be bool, where True attends, got float32. Compare it, as in mask != "
        "0; what is added to the scores is the bias."
    )
    refuses((Q, K, K, np.ones(5, np.float32)), TypeError, message)
    message = "attention: q_segments must be integers, got float32. Number the documents."
    segments = np.zeros(7, np.float32), np.zeros(5, np.int32)
    refuses((Q, K, K, *NONE[:3], *segments), TypeError, message)


@pytest.mark.parametrize(
    ("q", "k", "v"),
    [
        ((7, 4, 8), (2, 5, 2, 8), (2, 5, 2, 8)),
        ((2, 7, 4, 8), (2, 5, 2, 6), (2, 5, 2, 6)),
        ((2, 7, 4, 8), (2, 5, 2, 8), (2, 6, 2, 8)),
        ((2, 7, 4, 8), (3, 5, 2, 8), (3, 5, 2, 8)),
        ((8,), (8,), (8,)),
        ((7, 0), (5, 0), (5, 0)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(q: tuple, k: tuple, v: tuple) -> None:
    message = (
        "attention: q must be (B, T, H, D) and k and v (B, S, KV, D), or all without B, or (T, D) "
        f"and (S, D), got q {q}, k {k} and v {v}. Heads come after time: swap those axes where "
        "heads come first."
    )
    refuses(tuple(np.ones(shape, np.float32) for shape in (q, k, v)), ValueError, message)


def test_key_heads_that_do_not_divide_the_query_heads_are_refused() -> None:
    message = (
        "attention: the number of key heads must divide that of query heads, got 4 query heads "
        "and 3 key heads. Each key head serves the same number of query heads."
    )
    k = np.ones((2, 5, 3, 8), np.float32)
    refuses((Q, k, k), ValueError, message)


@pytest.mark.parametrize("shape", [(7,), (2, 7, 5), (3, 1, 1, 1), (1, 2, 4, 7, 5)])
def test_a_mask_or_bias_that_does_not_fit_the_scores_is_refused(shape: tuple[int, ...]) -> None:
    for name, args in (("mask", (np.ones(shape, bool),)), ("bias", (None, None, np.ones(shape)))):
        message = (
            f"attention: {name} must be broadcastable to (B, H, T, S) = (2, 4, 7, 5), got {shape}. "
            "Give every axis its length or 1."
        )
        refuses((Q, K, K, *args), ValueError, message)


def test_a_scale_per_head_is_refused() -> None:
    message = (
        "attention: scale must be a scalar, got shape (4,). Multiply q by a scale per head, and "
        "give scale=1.0."
    )
    refuses((Q, K, K, None, np.ones(4, np.float32)), ValueError, message)


def test_segments_that_do_not_fit_are_refused() -> None:
    message = (
        "attention: q_segments and k_segments must be given together, got only q_segments. Queries "
        "and keys of self-attention have the same."
    )
    refuses((Q, K, K, *NONE[:3], np.zeros(7, np.int32)), ValueError, message)
    message = (
        "attention: k_segments must be (B, S) = (2, 5), or without B, got (7,). Give a number per "
        "position."
    )
    segments = np.zeros(7, np.int32)
    refuses((Q, K, K, *NONE[:3], segments, segments), ValueError, message)


OPTIONS = {
    "window": ({"window": 0}, ValueError, "window must be at least 1, got 0. A window of 1 is the"),
    "half a window": ({"window": 0.5}, TypeError, "window must be a whole number, got 0.5."),
    "block": ({"block_size": 0}, ValueError, "block_size must be at least 1, got 0."),
    "no block": ({"block_size": None}, TypeError, "block_size must be a whole number, got None."),
    "cap": ({"soft_cap": 0.0}, ValueError, "soft_cap must be positive and finite, got 0.0. Give"),
    "causal": ({"causal": 1}, TypeError, "causal must be True or False, got 1."),
    "offset": (
        {"query_offset": 2},
        ValueError,
        "query_offset must come with causal=True or a window, got 2 without. Positions mean",
    ),
    "offset in part": (
        {"causal": True, "query_offset": 0.5},
        TypeError,
        "query_offset must be a whole number known when tracing, got 0.5. Where it is data,",
    ),
}


@pytest.mark.parametrize(("options", "error", "message"), OPTIONS.values(), ids=OPTIONS)
def test_options_that_make_no_sense_are_refused(
    options: dict, error: type[Exception], message: str
) -> None:
    for function in (attention, attention.reference, attention.forward):
        with pytest.raises(error) as refused:
            function(Q, K, K, **{"causal": False, **options})
        assert str(refused.value).startswith(f"attention: {message}")
