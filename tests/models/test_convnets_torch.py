"""LeNet and ResNet beside the same networks of PyTorch's modules: logits, loss, every gradient."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop
from jaxprop.checking.compiling import quickly
from jaxprop.models.batch_statistics import initial, updated
from tests.models.test_classifiers import LABELS, REDUCED, parameters, tiny_lenet
from tests.models.test_resnet import X, tiny
from tests.tolerances import assert_near

pytestmark = [pytest.mark.slow, pytest.mark.peers, pytest.mark.usefixtures("x64")]

MOMENTUM = 0.1


def kernel(w: Any) -> Any:
    """(H, W, C, C_out) as PyTorch has it, (C_out, C, H, W)."""
    return np.asarray(w).transpose(3, 2, 0, 1)


def set_all(module: Any, **arrays: Any) -> None:
    import torch

    for name, array in arrays.items():
        getattr(module, name).data = torch.tensor(np.array(array))


def torch_lenet(params: Any) -> tuple[Any, dict[str, Any]]:
    """(the network, its layers by our names), holding these parameters."""
    from torch import nn

    named: dict[str, Any] = {}
    layers: list[Any] = []
    for k, before in ((1, 2), (2, 3)):
        w = params[f"conv_{k}"]["w"]
        named[f"conv_{k}"] = nn.Conv2d(before, w.shape[-1], 3, padding=1)
        set_all(named[f"conv_{k}"], weight=kernel(w), bias=params[f"conv_{k}"]["b"])
        layers += [named[f"conv_{k}"], nn.ReLU(), nn.MaxPool2d(2)]
    for name in ("hidden_1", "output"):
        w, b = params[name]["w"], params[name]["b"]
        named[name] = nn.Linear(*w.shape)
        set_all(named[name], weight=np.asarray(w).T, bias=b)
    # Flattened from 1 x 1 places, where the order of the axes makes no difference.
    layers += [nn.Flatten(), named["hidden_1"], nn.ReLU(), named["output"]]
    return nn.Sequential(*layers), named


def test_lenet() -> None:
    torch = pytest.importorskip("torch")
    model, x = tiny_lenet()
    params, labels = parameters(model), jnp.asarray(LABELS)
    loss, dparams = quickly(jaxprop.value_and_grad(model.cost))(params, x, labels)
    theirs, named = torch_lenet(params)
    logits = theirs(torch.tensor(np.asarray(x).transpose(0, 3, 1, 2)))
    theirs_loss = torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS).long())
    theirs_loss.backward()
    assert_near(model.network(params, x), logits.detach().numpy(), reduced=REDUCED)
    assert_near(loss, theirs_loss.item(), reduced=REDUCED)
    for name, module in named.items():
        w, b = dparams[name]["w"], dparams[name]["b"]
        w = kernel(w) if w.ndim == 4 else np.asarray(w).T
        assert_near((w, b), gradients(module), reduced=REDUCED, what=name)


def gradients(module: Any) -> tuple[Any, Any]:
    return module.weight.grad.numpy(), module.bias.grad.numpy()


def torch_resnet(params: Any, large: bool) -> tuple[Any, dict[str, Any]]:
    """(x -> logits, its modules by our paths): a ResNet of one block in each of two stages."""
    from torch import nn
    from torch.nn import functional

    named: dict[str, Any] = {}

    def conv(path: str, p: Any, stride: int) -> Any:
        height, _, before, width = p["w"].shape
        made = nn.Conv2d(before, width, height, stride, padding=height // 2, bias=False)
        set_all(made, weight=kernel(p["w"]))
        return named.setdefault(path, made)

    def norm(path: str, p: Any) -> Any:
        made = nn.BatchNorm2d(len(p["gamma"]), eps=1e-5, momentum=MOMENTUM)
        set_all(made, weight=p["gamma"], bias=p["beta"])
        return named.setdefault(path, made.double())

    def block(path: str, p: Any, stride: int) -> Any:
        first = conv(f"{path}/conv_1", p["conv_1"], stride)
        second = conv(f"{path}/conv_2", p["conv_2"], 1)
        norms = [norm(f"{path}/norm_{k}", p[f"norm_{k}"]) for k in (1, 2)]
        shortcut = nn.Identity()
        if "conv_shortcut" in p:
            shortcut = nn.Sequential(
                conv(f"{path}/conv_shortcut", p["conv_shortcut"], stride),
                norm(f"{path}/norm_shortcut", p["norm_shortcut"]),
            )
        branch = nn.Sequential(first, norms[0], nn.ReLU(), second, norms[1])
        return lambda x: functional.relu(branch(x) + shortcut(x))

    stem = conv("stem/conv", params["stem"]["conv"], 2 if large else 1)
    of_stem = norm("stem/norm", params["stem"]["norm"])
    blocks = [block(f"stage_{k}/block_1", params[f"stage_{k}"]["block_1"], k) for k in (1, 2)]
    head = nn.Linear(*params["head"]["w"].shape)
    set_all(head, weight=np.asarray(params["head"]["w"]).T, bias=params["head"]["b"])
    named["head"] = head

    def logits(x: Any) -> Any:
        h = functional.relu(of_stem(stem(x)))
        h = functional.max_pool2d(h, 3, 2, 1) if large else h
        for each in blocks:
            h = each(h)
        return head(h.mean((2, 3)))

    return logits, named


@pytest.mark.parametrize("stem", ["small", "large"])
def test_resnet_and_its_running_statistics(stem: str) -> None:
    """PyTorch averages unbiased variances, ours are biased: they differ by n / (n - 1)."""
    torch = pytest.importorskip("torch")
    model = tiny(stem=stem)
    params, x, labels = parameters(model), jnp.asarray(X), jnp.asarray(LABELS)
    run = quickly(jaxprop.value_and_grad(model.cost, has_aux=True))
    (loss, statistics), dparams = run(params, x, labels)
    network, named = torch_resnet(params, stem == "large")
    sizes: dict[str, int] = {}
    for path, module in named.items():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_pre_hook(counting(sizes, path))
    logits = network(torch.tensor(X.transpose(0, 3, 1, 2)))
    theirs_loss = torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS).long())
    theirs_loss.backward()
    ours, _ = quickly(model.network.reference)(params, x)
    assert_near(ours, logits.detach().numpy(), reduced=REDUCED)
    assert_near(loss, theirs_loss.item(), reduced=REDUCED)
    running = updated(initial(params), statistics, MOMENTUM)
    for path, module in named.items():
        d = at(dparams, path)
        if path == "head":
            assert_near((d["w"].T, d["b"]), gradients(module), reduced=REDUCED)
        elif "conv" in path:
            assert_near(kernel(d["w"]), module.weight.grad.numpy(), reduced=REDUCED, what=path)
        else:
            assert_near((d["gamma"], d["beta"]), gradients(module), reduced=REDUCED, what=path)
            averages, n = at(running, path), sizes[path]
            unbiased = 0.9 + (averages["var"] - 0.9) * n / (n - 1)
            theirs = module.running_mean.numpy(), module.running_var.numpy()
            assert_near((averages["mean"], unbiased), theirs, reduced=REDUCED, what=path)


def at(tree: Any, path: str) -> Any:
    for name in path.split("/"):
        tree = tree[name]
    return tree


def counting(sizes: dict[str, int], path: str) -> Any:
    """A hook that notes how many numbers of each channel a norm sees."""

    def note(module: Any, inputs: tuple) -> None:
        batch, _, height, width = inputs[0].shape
        sizes[path] = batch * height * width

    return note
