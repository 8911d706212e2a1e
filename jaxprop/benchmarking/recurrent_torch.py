"""The LSTM of `jaxprop.models.recurrent` in PyTorch, as `torch_process` runs it."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxprop.benchmarking.torch_process import Network, serve


def make(arrays: Mapping[str, Any], batch: Mapping[str, Any], config: dict[str, Any]) -> Network:
    """nn.Embedding, nn.LSTM and nn.Linear; of its two biases one is 0 and not trained."""
    import torch

    width, vocabulary, depth = config["width"], config["vocabulary"], config["depth"]
    table = torch.nn.Embedding(vocabulary, width)
    stack = torch.nn.LSTM(width, width, num_layers=depth, batch_first=True)
    head = torch.nn.Linear(width, vocabulary, bias=False)
    places = [(table.weight, arrays["embedding"]), (head.weight, arrays["head"].T)]
    for k in range(depth):
        names = {"weight_ih": "w_x", "weight_hh": "w_h", "bias_ih": "b"}
        for theirs, ours in names.items():
            places.append((getattr(stack, f"{theirs}_l{k}"), arrays[f"blocks/{ours}"][k].T))
        getattr(stack, f"bias_hh_l{k}").requires_grad_(False).zero_()
    with torch.no_grad():
        for parameter, array in places:
            parameter.copy_(torch.tensor(array))
    tokens, labels = (torch.tensor(batch[name]).long() for name in ("inputs", "labels"))

    def cost() -> Any:
        h, _ = stack(table(tokens))
        return torch.nn.functional.cross_entropy(head(h).flatten(0, 1), labels.flatten())

    return Network([parameter for parameter, _ in places], cost)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), make)
