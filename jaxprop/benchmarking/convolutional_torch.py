"""The same convnets in PyTorch, as `torch_process` runs them: channels first, as is usual there."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxprop.benchmarking.torch_process import Network, serve


def make(arrays: Mapping[str, Any], batch: Mapping[str, Any], config: dict[str, Any]) -> Network:
    """LeNet of parameters that begin with conv_1, ResNet of those with a stem."""
    import torch

    params = {name: torch.tensor(_turned(array)) for name, array in arrays.items()}
    for tensor in params.values():
        tensor.requires_grad_(True)
    x = torch.tensor(batch["inputs"].transpose(0, 3, 1, 2).copy())
    labels = torch.tensor(batch["labels"]).long()
    logits = _resnet if "stem/conv/w" in params else _lenet

    def cost() -> Any:
        return torch.nn.functional.cross_entropy(logits(params, x), labels)

    return Network(params.values(), cost)


def _turned(array: Any) -> Any:
    """A kernel (H, W, C, C_out) as (C_out, C, H, W); others as they are."""
    return array.transpose(3, 2, 0, 1).copy() if array.ndim == 4 else array


def _lenet(params: Mapping[str, Any], x: Any) -> Any:
    from torch.nn import functional as nn

    def layers(kind: str) -> list[str]:
        return sorted({name.split("/")[0] for name in params if name.startswith(f"{kind}_")})

    h = x
    for name in layers("conv"):
        w, b = params[f"{name}/w"], params[f"{name}/b"]
        h = nn.max_pool2d(nn.relu(nn.conv2d(h, w, b, padding=w.shape[-1] // 2)), 2)
    h = h.permute(0, 2, 3, 1).flatten(1)
    for name in layers("hidden"):
        h = nn.relu(nn.linear(h, params[f"{name}/w"].T, params[f"{name}/b"]))
    return nn.linear(h, params["output/w"].T, params["output/b"])


def _resnet(params: Mapping[str, Any], x: Any) -> Any:
    from torch.nn import functional as nn

    def norm(a: Any, path: str) -> Any:
        gamma, beta = params[f"{path}/gamma"], params[f"{path}/beta"]
        return nn.batch_norm(a, None, None, gamma, beta, training=True, eps=1e-5)

    def block(x: Any, path: str, stride: int) -> Any:
        h = nn.conv2d(x, params[f"{path}/conv_1/w"], stride=stride, padding=1)
        h = nn.relu(norm(h, f"{path}/norm_1"))
        n = norm(nn.conv2d(h, params[f"{path}/conv_2/w"], padding=1), f"{path}/norm_2")
        w = params.get(f"{path}/conv_shortcut/w")
        if w is not None:
            x = norm(nn.conv2d(x, w, stride=stride), f"{path}/norm_shortcut")
        return nn.relu(n + x)

    h = nn.relu(norm(nn.conv2d(x, params["stem/conv/w"], padding=1), "stem/norm"))
    paths = sorted({"/".join(name.split("/")[:2]) for name in params if name.startswith("stage")})
    for path in paths:
        stride = 2 if path.endswith("block_1") and not path.startswith("stage_1") else 1
        h = block(h, path, stride)
    return nn.linear(h.mean((2, 3)), params["head/w"].T, params["head/b"])


if __name__ == "__main__":
    serve(Path(sys.argv[1]), make)
