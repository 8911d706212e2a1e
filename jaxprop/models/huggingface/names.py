"""Which tensor of a checkpoint is which leaf of params, and which way round it lies."""

from typing import NamedTuple

import jax

from jaxprop.installing import PyTree
from jaxprop.models.gpt2 import Gpt2Config
from jaxprop.models.language import LanguageModel

# By the path of a leaf: the tensor's name, {k} for the block, and whether it is transposed.
GPT2 = {
    "embedding": ("wte.weight", False),
    "positions": ("wpe.weight", False),
    "blocks/attention/norm/gamma": ("h.{k}.ln_1.weight", False),
    "blocks/attention/norm/beta": ("h.{k}.ln_1.bias", False),
    "blocks/attention/w_qkv": ("h.{k}.attn.c_attn.weight", False),
    "blocks/attention/b_qkv": ("h.{k}.attn.c_attn.bias", False),
    "blocks/attention/w_o": ("h.{k}.attn.c_proj.weight", False),
    "blocks/attention/b_o": ("h.{k}.attn.c_proj.bias", False),
    "blocks/feed_forward/norm/gamma": ("h.{k}.ln_2.weight", False),
    "blocks/feed_forward/norm/beta": ("h.{k}.ln_2.bias", False),
    "blocks/feed_forward/w_in": ("h.{k}.mlp.c_fc.weight", False),
    "blocks/feed_forward/b_in": ("h.{k}.mlp.c_fc.bias", False),
    "blocks/feed_forward/w_out": ("h.{k}.mlp.c_proj.weight", False),
    "blocks/feed_forward/b_out": ("h.{k}.mlp.c_proj.bias", False),
    "norm/gamma": ("ln_f.weight", False),
    "norm/beta": ("ln_f.bias", False),
    "head": ("lm_head.weight", True),
}
LLAMA = {
    "embedding": ("embed_tokens.weight", False),
    "blocks/attention/norm": ("layers.{k}.input_layernorm.weight", False),
    "blocks/attention/w_q": ("layers.{k}.self_attn.q_proj.weight", True),
    "blocks/attention/w_k": ("layers.{k}.self_attn.k_proj.weight", True),
    "blocks/attention/w_v": ("layers.{k}.self_attn.v_proj.weight", True),
    "blocks/attention/b_q": ("layers.{k}.self_attn.q_proj.bias", False),
    "blocks/attention/b_k": ("layers.{k}.self_attn.k_proj.bias", False),
    "blocks/attention/b_v": ("layers.{k}.self_attn.v_proj.bias", False),
    "blocks/attention/w_o": ("layers.{k}.self_attn.o_proj.weight", True),
    "blocks/feed_forward/norm": ("layers.{k}.post_attention_layernorm.weight", False),
    "blocks/feed_forward/w_gate": ("layers.{k}.mlp.gate_proj.weight", True),
    "blocks/feed_forward/w_up": ("layers.{k}.mlp.up_proj.weight", True),
    "blocks/feed_forward/w_down": ("layers.{k}.mlp.down_proj.weight", True),
    "norm": ("norm.weight", False),
    "head": ("lm_head.weight", True),
}
# What the files put before every name but that of the last layer, or leave out.
PREFIXES = ("transformer.", "model.")
HEAD = "lm_head.weight"
# Buffers that some versions wrote: masks and frequencies, which are computed here.
IGNORED = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


class Place(NamedTuple):
    """The tensors of one leaf: one of each block where it is stacked."""

    names: tuple[str, ...]
    transposed: bool
    stacked: bool


def places(model: LanguageModel, shapes: PyTree) -> list[Place]:
    """The place of each leaf of params, in their order, by names without a prefix."""
    table = GPT2 if isinstance(model.config, Gpt2Config) else LLAMA
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        name, transposed = table["/".join(entry.key for entry in path)]
        stacked = "{k}" in name
        names = [name.format(k=k) for k in range(leaf.shape[0] if stacked else 1)]
        found.append(Place(tuple(names), transposed, stacked))
    return found


def expected_tensors(model: LanguageModel, shapes: PyTree) -> dict[str, tuple[int, ...]]:
    """Every tensor by name, with its shape as the file has it."""
    tensors: dict[str, tuple[int, ...]] = {}
    for place, leaf in zip(places(model, shapes), jax.tree.leaves(shapes), strict=True):
        shape = leaf.shape[1:] if place.stacked else leaf.shape
        tensors |= dict.fromkeys(place.names, shape[::-1] if place.transposed else shape)
    return tensors


def is_ignored(name: str) -> bool:
    return f".{name}".endswith(IGNORED)


def without_prefix(name: str) -> str:
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def with_prefix(name: str) -> str:
    """The name as it is written: that of the model whose head is lm_head."""
    if name == HEAD:
        return name
    gpt2 = name.startswith(("wte.", "wpe.", "h.", "ln_f."))
    return ("transformer." if gpt2 else "model.") + name
