"""What a person sees of a trace: the table and the picture."""

from collections.abc import Iterator
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprop.precision import up

if TYPE_CHECKING:
    from jaxprop.tracing import LayerTrace, Trace

ARRIVING = {"h": "g arriving, dJ/dh", "a": "g after f', dJ/da"}


class Row(NamedTuple):
    layer: str
    quantity: str
    array: jax.Array


def forward_rows(trace: "Trace") -> Iterator[Row]:
    """Algorithm 6.3, one row per quantity, in the order computed."""
    yield Row("", "x", trace.x)
    for layer in trace.layers:
        for name, value in layer.values.items():
            yield Row(layer.name, name, value)


def backward_rows(trace: "Trace") -> Iterator[Row]:
    """Algorithm 6.4, one row per quantity, in the order computed."""
    for layer in reversed(trace.layers):
        yield from _layer_rows(layer)


def _layer_rows(layer: "LayerTrace") -> Iterator[Row]:
    if layer.dactivity is not None:
        yield Row(layer.name, "  of it the activity penalty's", layer.dactivity)
    for name, g in layer.gradients.items():
        if g is not None:
            yield Row(layer.name, ARRIVING.get(name, f"dJ/d{name}"), g)
    yield from _parameter_rows(layer, "dL/d{}", layer.dparams)
    yield from _parameter_rows(layer, "penalty's share of dJ/d{}", layer.dpenalty)
    if layer.dx is not None:
        yield Row(layer.name, "g handed on, dJ/dx", layer.dx)


def _parameter_rows(layer: "LayerTrace", quantity: str, tree: Any) -> Iterator[Row]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        yield Row(layer.name, quantity.format(name), leaf)


def table(trace: "Trace") -> str:
    """Every quantity of the trace with its shape, norm, largest entry and share of zeros."""
    lines = [_HEADER.format("Algorithm 6.3, forward", "", "shape", "norm", "max |.|", "zeros")]
    lines += [_line(row) for row in forward_rows(trace)]
    if trace.terms:
        lines += ["", *(f"{name:<24}{float(value):.6g}" for name, value in trace.terms.items())]
        lines += [f"{'J':<24}{sum(float(value) for value in trace.terms.values()):.6g}"]
    title = "Algorithm 6.4, backward"
    lines += ["", _HEADER.format(title, "", "shape", "norm", "max |.|", "zeros")]
    lines += [_line(row) for row in backward_rows(trace)]
    return "\n".join(lines)


_HEADER = "{:<24}{:<30}{:>16}{:>11}{:>11}{:>8}"


def _line(row: Row) -> str:
    array = up(row.array)
    norm = float(jnp.sqrt(jnp.sum(array * array)))
    largest = float(jnp.max(jnp.abs(array), initial=0.0))
    zeros = float(jnp.mean(array == 0)) if array.size else 0.0
    shape = "x".join(map(str, array.shape)) or "scalar"
    return f"{row.layer:<24}{row.quantity:<30}{shape:>16}{norm:>11.4g}{largest:>11.4g}{zeros:>8.0%}"


def plot(trace: "Trace", path: str | PathLike[str]) -> None:
    """Write three panels by depth to `path`: activations, gradients in them, in parameters.

    Raises ImportError with a remedy where matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "trace: a plot needs matplotlib, which is not installed. Install the extra `train`, as "
            "in pip install -e '.[train]'."
        ) from None
    width = max(4.0, 1.0 + 0.9 * len(trace.layers))
    figure = Figure(figsize=(3 * width, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    names = [layer.name for layer in trace.layers]
    _by_depth(left, names, _norms(trace, "values", {"a": "a", "h": "h"}))
    _by_depth(middle, names, _norms(trace, "gradients", ARRIVING))
    _parameters(right, trace)
    left.set_title("Forward: activations", pad=30)
    middle.set_title("Backward: gradient flow", pad=30)
    right.set_title("Backward: parameters", pad=30)
    figure.suptitle("The trace of one batch, by layer (input side at the left)")
    figure.savefig(path, dpi=120)


def _norms(trace: "Trace", field: str, labels: dict[str, str]) -> dict[str, list[float]]:
    """By label, the norm at each layer; nan where a layer has no such quantity."""
    return {
        label: [_norm(getattr(layer, field).get(name)) for layer in trace.layers]
        for name, label in labels.items()
    }


def _norm(array: jax.Array | None) -> float:
    if array is None:
        return float("nan")
    return float(jnp.linalg.norm(jnp.ravel(up(array))))


def _by_depth(axes: Any, names: list[str], series: dict[str, list[float]]) -> None:
    for (label, norms), marker in zip(series.items(), "os", strict=True):
        axes.plot(range(len(names)), norms, marker=marker, label=label)
    _finish(axes, names)


def _parameters(axes: Any, trace: "Trace") -> None:
    """One bar per parameter for the loss's gradient, one for the penalty's share."""
    rows = [
        (f"{layer.name}/{jax.tree_util.keystr(path, simple=True, separator='/')}", leaf, layer)
        for layer in trace.layers
        for path, leaf in jax.tree_util.tree_leaves_with_path(layer.dparams)
    ]
    shares = [
        leaf
        for layer in trace.layers
        for leaf in jax.tree.leaves(layer.dpenalty, is_leaf=lambda node: node is None)
    ]
    places = range(len(rows))
    axes.bar([p - 0.2 for p in places], [_norm(leaf) for _, leaf, _ in rows], 0.4, label="loss")
    if len(shares) == len(rows):
        norms = [_norm(leaf) for leaf in shares]
        axes.bar([p + 0.2 for p in places], norms, 0.4, label="penalty's share")
    _finish(axes, [name for name, *_ in rows])


def _finish(axes: Any, names: list[str]) -> None:
    """A logarithmic axis with plain numbers, names below, the legend clear of what is drawn."""
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_ylabel("norm over the batch")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
