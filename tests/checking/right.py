"""Every right function, at which the checker must not cry wolf."""

from tests.checking import right_arithmetic, right_features, right_layers, right_unusual

RIGHT = [
    *right_layers.RIGHT,
    *right_arithmetic.RIGHT,
    *right_features.RIGHT,
    *right_unusual.RIGHT,
]
