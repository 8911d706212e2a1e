"""Arguments of shapes that hypothesis draws."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies

PyTree = Any


def arguments(
    *templates: PyTree, sizes: tuple[int, int] = (1, 16), seed: int = 0
) -> strategies.SearchStrategy[tuple]:
    """Make a strategy for the arguments of a function: hypothesis draws the named axes' lengths.

    Args:
        templates: one per argument, a shape or a pytree of shapes, such as `("B", 3)`: numbers
            are lengths, and axes of one name have one length.
        sizes: the least and the greatest length to draw.
        seed: of the values, which are standard normal in float32. Equal lengths give equal
            values, so that a failure can be made smaller and run again.

    Returns:
        A strategy of tuples of arguments. A strategy of your own does as well where arguments
        are not normal: integer labels, say.

    Raises:
        ValueError: where no axis is named: there is nothing to draw.
    """
    shapes = jax.tree.leaves(templates, is_leaf=_is_shape)
    names = sorted({axis for shape in shapes for axis in shape if isinstance(axis, str)})
    if not names:
        raise ValueError(
            f"arguments: some axis must have a name, got {templates}. Write 'B' for a length that "
            "is to be drawn."
        )
    lengths = strategies.fixed_dictionaries({name: strategies.integers(*sizes) for name in names})
    return lengths.map(lambda drawn: _arguments(templates, drawn, seed))


def _arguments(templates: tuple, lengths: dict[str, int], seed: int) -> tuple:
    random = np.random.default_rng(seed)

    def array(template: tuple) -> jax.Array:
        shape = [lengths[axis] if isinstance(axis, str) else axis for axis in template]
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    return jax.tree.map(array, templates, is_leaf=_is_shape)


def _is_shape(node: Any) -> bool:
    return isinstance(node, tuple) and all(isinstance(axis, (int, str)) for axis in node)
