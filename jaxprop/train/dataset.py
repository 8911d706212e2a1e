"""What a loader of data returns."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["classes", "binary", "regression"]


@dataclass(frozen=True)
class Dataset:
    """Examples as they were read.

    name:          as in --dataset.
    kind:          "classes" (labels 0, 1, ..), "binary" (labels 0 and 1) or "regression".
    x:             images (N, height, width, colours) or features (N, features).
    y:             (N,), int32 labels or float64 targets.
    classes:       the names of the classes, by label; empty for regression.
    unit:          what y is measured in, for regression.
    official_test: how many examples, the last ones, the publisher keeps for testing; 0
                   where there is no such part.
    """

    name: str
    kind: Kind
    x: np.ndarray
    y: np.ndarray
    classes: tuple[str, ...] = ()
    unit: str = ""
    official_test: int = 0

    @property
    def are_images(self) -> bool:
        return self.x.ndim == 4
