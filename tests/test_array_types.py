"""What is known of arrays when tracing, and arguments that are none."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

import jaxprop
from jaxprop.array_types import leaf_names, tree_type, vary, varying_axes, zeros


def two_axes() -> Mesh:
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def test_an_argument_that_is_no_array_is_named_by_its_path() -> None:
    message = r"^l2: params\['w'\] must be an array or a number, got object \(<.*>\). Convert it"
    with pytest.raises(TypeError, match=message):
        jaxprop.l2({"w": object(), "b": 1.0})


def test_an_output_that_is_no_array_is_refused() -> None:
    def odd_reference(x):
        return x

    rule = jaxprop.Rule(odd_reference, lambda x: (object(), ()), lambda res, g: (g,))
    with pytest.raises(
        TypeError, match=r"^odd: the output must be an array or a number, got object"
    ):
        rule.forward(1.0)


def test_types_of_trees_are_equal_where_jit_would_reuse_a_program() -> None:
    tree = {"w": jnp.ones((2, 3)), "b": None}
    assert tree_type(tree) == tree_type({"w": jnp.zeros((2, 3)), "b": None})
    assert hash(tree_type(tree)) == hash(tree_type({"w": jnp.zeros((2, 3)), "b": None}))
    assert tree_type(tree) != tree_type({"w": jnp.ones((3, 2)), "b": None})
    assert tree_type(tree) != tree_type({"w": jnp.ones((2, 3), jnp.bfloat16), "b": None})
    assert tree_type(tree) != tree_type({"v": jnp.ones((2, 3)), "b": None})


def test_leaves_are_named_by_their_paths() -> None:
    kind = tree_type({"layers": [jnp.ones(1), {"w": jnp.ones(2)}], "b": None})
    assert leaf_names("params", kind) == ["params['layers'][0]", "params['layers'][1]['w']"]
    assert leaf_names("x", tree_type(jnp.ones(1))) == ["x"]


@pytest.mark.parametrize("check_vma", [True, False])
def test_varying_axes_are_those_of_the_enclosing_shard_map(check_vma: bool) -> None:
    """None outside one, and none where jax does not track them."""
    seen = {}

    def look(shared, own):
        seen.update(shared=varying_axes(shared), own=varying_axes(own))
        return own

    specs = {"in_specs": (P(), P("data")), "out_specs": P("data")}
    mapped = jax.shard_map(look, mesh=two_axes(), check_vma=check_vma, **specs)
    jax.eval_shape(mapped, jnp.ones(8), jnp.ones(8))
    assert seen == {"shared": set(), "own": {"data"} if check_vma else set()}
    assert varying_axes(np.ones(8)) == set()


def test_a_jax_that_calls_varying_axes_something_else_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A default would sum over the wrong axes without a word."""
    monkeypatch.setattr(jax, "typeof", lambda x: SimpleNamespace(vma=frozenset()))
    with pytest.raises(AttributeError, match="manual_axis_type"):
        varying_axes(jnp.ones(8))


def test_vary_adds_the_axes_that_are_missing() -> None:
    both = frozenset({"data", "model"})
    seen = []

    @partial(jax.shard_map, mesh=two_axes(), in_specs=P("data"), out_specs=P(("data", "model")))
    def mapped(x):
        x = vary(vary(x, both), both)
        nought = zeros(tree_type(x).leaves[0])
        seen.extend([varying_axes(x), varying_axes(nought)])
        return x + nought

    assert jax.eval_shape(mapped, jnp.ones(8)).shape == (16,)
    assert seen == [both, both]
