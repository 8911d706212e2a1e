"""The same GPT in PyTorch, as `torch_process` runs it."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxprop.benchmarking.torch_process import Network, serve


def make(arrays: Mapping[str, Any], batch: Mapping[str, Any], config: dict[str, Any]) -> Network:
    import torch

    params: dict[tuple[str, int], Any] = {}
    for name, x in arrays.items():
        # The blocks' parameters are stacked; here each block has its own.
        parts = enumerate(x) if name.startswith("blocks/") else [(0, x)]
        params |= {(name, k): torch.tensor(part, requires_grad=True) for k, part in parts}
    tokens, labels = (torch.tensor(batch[name]).long() for name in ("inputs", "labels"))

    def cost() -> Any:
        logits = _logits(params, tokens, config)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    return Network(params.values(), cost)


def _logits(params: dict[tuple[str, int], Any], tokens: Any, config: dict[str, Any]) -> Any:
    from torch.nn import functional as nn

    width, heads = config["width"], config["heads"]

    def norm(x: Any, name: str, k: int = 0) -> Any:
        gamma, beta = (params[f"{name}/{part}", k] for part in ("gamma", "beta"))
        return nn.layer_norm(x, (width,), gamma, beta, config["eps"])

    def affine(x: Any, name: str, k: int) -> Any:
        w, b = (params[f"blocks/{name.format(part)}", k] for part in ("w", "b"))
        return nn.linear(x, w.T, b)

    table = params["embedding", 0]
    h = table[tokens] + params["positions", 0][: tokens.shape[1]]
    for k in range(config["depth"]):
        qkv = affine(norm(h, "blocks/attention/norm", k), "attention/{}_qkv", k)
        q, key, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in qkv.chunk(3, dim=-1))
        a = nn.scaled_dot_product_attention(q, key, v, is_causal=True)
        h = h + affine(a.transpose(1, 2).flatten(2), "attention/{}_o", k)
        z = affine(norm(h, "blocks/feed_forward/norm", k), "feed_forward/{}_in", k)
        h = h + affine(nn.gelu(z, approximate="tanh"), "feed_forward/{}_out", k)
    return norm(h, "norm") @ table.T


if __name__ == "__main__":
    serve(Path(sys.argv[1]), make)
