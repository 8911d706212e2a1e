"""The same GPT in PyTorch, eager, in a process of its own that takes a step when it is told to.

    python -m jaxprop.benchmarking.gpt_torch FOLDER

FOLDER has params.npz (names with a / in them), batch.npz and config.json. A line of JSON is
printed with the loss and the norm of the gradient before any step; then, for each line read, one
step of AdamW is taken and its seconds are printed.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Worker(NamedTuple):
    """What the process said first, and what makes it take a step: seconds."""

    loss: float
    gradient_norm: float
    step: Callable[[], float]


def start(config: Any, params: Mapping[str, Any], batch: Mapping[str, Any]) -> Worker:
    """A worker with these arrays by name as its parameters and batch; it ends with this process."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "params.npz", **params)
        np.savez(Path(folder) / "batch.npz", **batch)
        (Path(folder) / "config.json").write_text(json.dumps(asdict(config)))
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxprop.benchmarking.gpt_torch", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        asked, said = process.stdin, process.stdout
        first = said.readline()
    if not first:
        raise ValueError("the PyTorch process ended before its first step")

    def step() -> float:
        asked.write("\n")
        asked.flush()
        return float(said.readline())

    loss, norm = json.loads(first)
    return Worker(loss, norm, step)


def main(folder: Path) -> None:
    import torch

    config = json.loads((folder / "config.json").read_text())
    params: dict[tuple[str, int], Any] = {}
    for name, x in np.load(folder / "params.npz").items():
        # The blocks' parameters are stacked; here each block has its own.
        parts = enumerate(x) if name.startswith("blocks/") else [(0, x)]
        params |= {(name, k): torch.tensor(part, requires_grad=True) for k, part in parts}
    tokens, labels = (torch.tensor(x).long() for x in np.load(folder / "batch.npz").values())
    optimiser = torch.optim.AdamW(params.values(), lr=1e-4)

    def cost() -> Any:
        logits = _logits(params, tokens, config)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    loss = cost()
    loss.backward()
    norm = sum(float(p.grad.square().sum()) for p in params.values()) ** 0.5
    print(json.dumps([loss.item(), norm]), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        optimiser.zero_grad()
        cost().backward()
        optimiser.step()
        print(time.perf_counter() - started, flush=True)


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
    main(Path(sys.argv[1]))
