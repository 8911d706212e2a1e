"""A network in PyTorch, eager, in a process of its own that takes a step when it is told to.

    python -m MODULE FOLDER

MODULE calls `serve`. FOLDER has params.npz (names with a / in them), batch.npz and config.json. A
line of JSON is printed with the loss and the norm of the gradient before any step; then, for each
line read, one step of AdamW is taken and its seconds are printed.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RATE = 1e-4


class Worker(NamedTuple):
    """What the process said first, and what makes it take a step: seconds."""

    loss: float
    gradient_norm: float
    step: Callable[[], float]


class Network(NamedTuple):
    """What a module makes of params, batch and config: what is trained, and J of it, a tensor."""

    parameters: Iterable[Any]
    cost: Callable[[], Any]


def start(module: str, config: Any, params: Mapping[str, Any], batch: Mapping[str, Any]) -> Worker:
    """A worker with these arrays by name as its parameters and batch; it ends with this process."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "params.npz", **params)
        np.savez(Path(folder) / "batch.npz", **batch)
        (Path(folder) / "config.json").write_text(json.dumps(asdict(config)))
        process = subprocess.Popen(
            [sys.executable, "-m", module, folder],
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


def serve(folder: Path, make: Callable[[Mapping, Mapping, dict[str, Any]], Network]) -> None:
    """Take steps as told; make(params, batch, config) gets arrays by name."""
    import torch

    config = json.loads((folder / "config.json").read_text())
    network = make(np.load(folder / "params.npz"), np.load(folder / "batch.npz"), config)
    parameters = list(network.parameters)
    optimiser = torch.optim.AdamW(parameters, lr=RATE)
    loss = network.cost()
    loss.backward()
    norm = sum(float(p.grad.square().sum()) for p in parameters) ** 0.5
    print(json.dumps([loss.item(), norm]), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        optimiser.zero_grad()
        network.cost().backward()
        optimiser.step()
        print(time.perf_counter() - started, flush=True)
