"""The same convnets in plain JAX, of the layers of Flax NNX, and of Equinox."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.installing import PyTree

# (their parameters, J(their parameters, images, labels)).
Made = tuple[PyTree, Callable[[PyTree, jax.Array, jax.Array], jax.Array]]
EPS = 1e-5
AROUND = ((1, 1), (1, 1))


def plain_lenet(params: PyTree) -> Made:
    """lax.conv and lax.reduce_window, automatic differentiation."""

    def cost(params: PyTree, x: jax.Array, labels: jax.Array) -> jax.Array:
        h = x
        for k in range(1, 1 + _count(params, "conv")):
            p = params[f"conv_{k}"]
            a = jax.nn.relu(_conv(h, p["w"], 1, "SAME") + p["b"])
            h = lax.reduce_window(a, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        h = h.reshape(len(h), -1)
        for k in range(1, 1 + _count(params, "hidden")):
            p = params[f"hidden_{k}"]
            h = jax.nn.relu(h @ p["w"] + p["b"])
        return _cross_entropy(h @ params["output"]["w"] + params["output"]["b"], labels)

    return params, cost


def flax_lenet(params: PyTree) -> Made:
    """Of nnx.Conv, nnx.max_pool and nnx.Linear."""
    from flax import nnx

    convolutions, hidden = _count(params, "conv"), _count(params, "hidden")

    class Network(nnx.Module):
        def __init__(self) -> None:
            names = [f"conv_{k}" for k in range(1, 1 + convolutions)]
            self.convolutions = nnx.List([_flax_conv(params[name], 1, "SAME") for name in names])
            names = [f"hidden_{k}" for k in range(1, 1 + hidden)]
            self.hidden = nnx.List([_flax_linear(params[name]) for name in names])
            self.output = _flax_linear(params["output"])

        def __call__(self, h: jax.Array) -> jax.Array:
            for conv in self.convolutions:
                h = nnx.max_pool(nnx.relu(conv(h)), (2, 2), (2, 2))
            h = h.reshape(len(h), -1)
            for layer in self.hidden:
                h = nnx.relu(layer(h))
            return self.output(h)

    structure, state = nnx.split(Network())

    def cost(state: PyTree, x: jax.Array, labels: jax.Array) -> jax.Array:
        return _cross_entropy(nnx.merge(structure, state)(x), labels)

    return state, cost


def equinox_lenet(params: PyTree) -> Made:
    """Of eqx.nn.Conv2d, MaxPool2d and Linear, for one image with channels first, under vmap."""
    import equinox as eqx

    key = jax.random.key(0)

    def conv(p: PyTree) -> Any:
        height, _, before, channels = p["w"].shape
        made = eqx.nn.Conv2d(before, channels, height, padding="SAME", key=key)
        arrays = p["w"].transpose(3, 2, 0, 1), p["b"][:, None, None]
        return eqx.tree_at(lambda m: (m.weight, m.bias), made, arrays)

    def linear(p: PyTree) -> Any:
        made = eqx.nn.Linear(*p["w"].shape, key=key)
        return eqx.tree_at(lambda m: (m.weight, m.bias), made, (p["w"].T, p["b"]))

    pool, parts = eqx.nn.MaxPool2d(2, 2), {}
    parts["conv"] = [conv(params[f"conv_{k + 1}"]) for k in range(_count(params, "conv"))]
    parts["hidden"] = [linear(params[f"hidden_{k + 1}"]) for k in range(_count(params, "hidden"))]
    parts["output"] = [linear(params["output"])]
    arrays, rest = eqx.partition(parts, eqx.is_inexact_array)

    def logits(network: PyTree, x: jax.Array) -> jax.Array:
        h = x.transpose(2, 0, 1)
        for layer in network["conv"]:
            h = pool(jax.nn.relu(layer(h)))
        h = h.transpose(1, 2, 0).reshape(-1)
        for layer in network["hidden"]:
            h = jax.nn.relu(layer(h))
        return network["output"][0](h)

    def cost(arrays: PyTree, x: jax.Array, labels: jax.Array) -> jax.Array:
        network = eqx.combine(arrays, rest)
        return _cross_entropy(jax.vmap(lambda one: logits(network, one))(x), labels)

    return arrays, cost


def plain_resnet(params: PyTree) -> Made:
    """lax.conv and batch norms by jnp.mean and jnp.var, automatic differentiation."""

    def norm(a: jax.Array, p: PyTree) -> jax.Array:
        mean, var = jnp.mean(a, (0, 1, 2)), jnp.var(a, (0, 1, 2))
        return p["gamma"] * (a - mean) * lax.rsqrt(var + EPS) + p["beta"]

    def block(p: PyTree, x: jax.Array, stride: int) -> jax.Array:
        h = jax.nn.relu(norm(_conv(x, p["conv_1"]["w"], stride, AROUND), p["norm_1"]))
        n = norm(_conv(h, p["conv_2"]["w"], 1, AROUND), p["norm_2"])
        if "conv_shortcut" in p:
            x = norm(_conv(x, p["conv_shortcut"]["w"], stride, "VALID"), p["norm_shortcut"])
        return jax.nn.relu(n + x)

    def cost(params: PyTree, x: jax.Array, labels: jax.Array) -> jax.Array:
        p = params["stem"]
        h = jax.nn.relu(norm(_conv(x, p["conv"]["w"], 1, AROUND), p["norm"]))
        for stage, name, stride in _blocks(params):
            h = block(params[stage][name], h, stride)
        head = params["head"]
        return _cross_entropy(h.mean((1, 2)) @ head["w"] + head["b"], labels)

    return params, cost


def flax_resnet(params: PyTree) -> Made:
    """Of nnx.Conv, nnx.BatchNorm and nnx.Linear."""
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self, p: PyTree, stride: int) -> None:
            self.conv_1 = _flax_conv(p["conv_1"], stride, AROUND)
            self.norm_1 = _flax_norm(p["norm_1"])
            self.conv_2 = _flax_conv(p["conv_2"], 1, AROUND)
            self.norm_2 = _flax_norm(p["norm_2"])
            self.projects = "conv_shortcut" in p
            if self.projects:
                self.conv_shortcut = _flax_conv(p["conv_shortcut"], stride, "VALID")
                self.norm_shortcut = _flax_norm(p["norm_shortcut"])

        def __call__(self, x: jax.Array) -> jax.Array:
            h = nnx.relu(self.norm_1(self.conv_1(x)))
            n = self.norm_2(self.conv_2(h))
            if self.projects:
                x = self.norm_shortcut(self.conv_shortcut(x))
            return nnx.relu(n + x)

    class Network(nnx.Module):
        def __init__(self) -> None:
            self.conv = _flax_conv(params["stem"]["conv"], 1, AROUND)
            self.norm = _flax_norm(params["stem"]["norm"])
            places = _blocks(params)
            self.blocks = nnx.List([Block(params[s][name], stride) for s, name, stride in places])
            self.head = _flax_linear(params["head"])

        def __call__(self, x: jax.Array) -> jax.Array:
            h = nnx.relu(self.norm(self.conv(x)))
            for block in self.blocks:
                h = block(h)
            return self.head(h.mean((1, 2)))

    parts: Any = nnx.split(Network(), nnx.Param, ...)
    structure, state, statistics = parts

    def cost(state: PyTree, x: jax.Array, labels: jax.Array) -> jax.Array:
        # As new variables: the network sets them, which it may not do to those from outside jit.
        own = jax.tree.map(lambda leaf: leaf, statistics)
        return _cross_entropy(nnx.merge(structure, state, own)(x), labels)

    return state, cost


def _flax_conv(p: PyTree, stride: int, padding: Any) -> Any:
    from flax import nnx

    height, width, before, channels = p["w"].shape
    made: Any = nnx.Conv(
        before,
        channels,
        (height, width),
        stride,
        padding=padding,
        use_bias="b" in p,
        rngs=nnx.Rngs(0),
    )
    made.kernel[...] = p["w"]
    if "b" in p:
        made.bias[...] = p["b"]
    return made


def _flax_norm(p: PyTree) -> Any:
    from flax import nnx

    made: Any = nnx.BatchNorm(
        len(p["gamma"]), use_running_average=False, epsilon=EPS, rngs=nnx.Rngs(0)
    )
    made.scale[...], made.bias[...] = p["gamma"], p["beta"]
    return made


def _flax_linear(p: PyTree) -> Any:
    from flax import nnx

    made: Any = nnx.Linear(*p["w"].shape, rngs=nnx.Rngs(0))
    made.kernel[...], made.bias[...] = p["w"], p["b"]
    return made


def _conv(x: jax.Array, w: jax.Array, stride: int, padding: Any) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, (stride, stride), padding, dimension_numbers=layout)


def _count(params: PyTree, kind: str) -> int:
    return sum(name.startswith(f"{kind}_") for name in params)


def _blocks(params: PyTree) -> list[tuple[str, str, int]]:
    """(stage, block, stride) in their order."""
    return [
        (stage, name, 2 if stage != "stage_1" and name == "block_1" else 1)
        for stage in sorted(name for name in params if name.startswith("stage_"))
        for name in sorted(params[stage])
    ]


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    import optax

    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
