"""Ways to stretch rotary frequencies, for sequences longer than those trained on.

Each is a hashable option of `rotary`. `frequencies(base, width)` gives radians per position for
each of the width / 2 pairs of features, in float64; `gain` is what all of them are multiplied by.
"""

from dataclasses import dataclass
from math import ceil, floor, log, pi
from typing import Protocol

import numpy as np


class Scaling(Protocol):
    """What the option `scaling` of rotary must have."""

    @property
    def gain(self) -> float: ...

    def frequencies(self, base: float, width: int) -> np.ndarray: ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class Unscaled:
    """base ** (-2 * i / width) for pair i."""

    gain: float = 1.0

    def frequencies(self, base: float, width: int) -> np.ndarray:
        return base ** (-np.arange(0, width, 2, dtype=np.float64) / width)


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by a factor: interpolated between those trained on.

    Source: Chen et al. (2023), Extending context window via position interpolation.
    """

    factor: float
    gain: float = 1.0

    def __post_init__(self) -> None:
        _check_positive(self, "factor")

    def frequencies(self, base: float, width: int) -> np.ndarray:
        return Unscaled().frequencies(base, width) / self.factor


@dataclass(frozen=True)
class NtkScaling:
    """A larger base: the slowest pair is slowed by the factor, the fastest is left alone.

    Source: bloc97 (2023), NTK-aware scaled RoPE; Peng et al. (2023), YaRN, section 3.1.
    """

    factor: float
    gain: float = 1.0

    def __post_init__(self) -> None:
        _check_positive(self, "factor")

    def frequencies(self, base: float, width: int) -> np.ndarray:
        if width < 4:
            raise ValueError(
                f"NtkScaling: at least two pairs of features must be rotated, got {width} "
                "features. Use LinearScaling for one."
            )
        return Unscaled().frequencies(base * self.factor ** (width / (width - 2)), width)


@dataclass(frozen=True)
class Llama3Scaling:
    """Slow pairs divided by a factor, fast ones left alone, those between interpolated.

    A pair is slow where it turns fewer than `low` times within the length trained on, and
    fast where more than `high` times.

    Source: Llama 3.1 (2024), as released with the model.
    """

    factor: float
    low: float
    high: float
    trained_length: int
    gain: float = 1.0

    def __post_init__(self) -> None:
        _check_positive(self, "factor", "low", "high", "trained_length")
        if self.low >= self.high:
            raise ValueError(
                f"Llama3Scaling: low must be less than high, got {self.low} and {self.high}. "
                "Llama 3.1 has 1 and 4."
            )

    def frequencies(self, base: float, width: int) -> np.ndarray:
        plain = Unscaled().frequencies(base, width)
        turns = self.trained_length * plain / (2 * pi)
        kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return kept * plain + (1 - kept) * plain / self.factor


@dataclass(frozen=True)
class YarnScaling:
    """Llama3Scaling's idea with a ramp over the pairs, and a gain that sharpens the attention.

    Pairs that turn more than `fast` times within the length trained on are left alone, those that
    turn fewer than `slow` times divided by the factor.

    Source: Peng et al. (2023), YaRN, sections 3.2 to 3.4, rounded to whole pairs as in its code.
    """

    factor: float
    trained_length: int
    fast: float = 32.0
    slow: float = 1.0

    def __post_init__(self) -> None:
        _check_positive(self, "factor", "trained_length", "fast", "slow")

    @property
    def gain(self) -> float:
        return 0.1 * log(self.factor) + 1 if self.factor > 1 else 1.0

    def frequencies(self, base: float, width: int) -> np.ndarray:
        plain = Unscaled().frequencies(base, width)
        first = max(floor(self._pair(self.fast, base, width)), 0)
        last = min(ceil(self._pair(self.slow, base, width)), width - 1)
        ramp = (np.arange(width // 2) - first) / max(last - first, 1e-3)
        divided = np.clip(ramp, 0, 1)
        return (1 - divided) * plain + divided * plain / self.factor

    def _pair(self, turns: float, base: float, width: int) -> float:
        """The index of the pair, not a whole one, that turns so often."""
        return width * log(self.trained_length / (turns * 2 * pi)) / (2 * log(base))


def _check_positive(scaling: object, *names: str) -> None:
    for name in names:
        value = getattr(scaling, name)
        if not value > 0:
            raise ValueError(f"{type(scaling).__name__}: {name} must be positive, got {value}.")
