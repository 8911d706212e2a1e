"""The datasets that come with scikit-learn, nothing to fetch."""

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

from jaxprop.train.dataset import Dataset


def digits() -> Dataset:
    """1797 handwritten digits of 8 x 8 pixels, 10 classes."""
    found = load_digits()
    classes = tuple(str(name) for name in found.target_names)
    images = found.images[..., None]
    return Dataset("digits", "classes", images, found.target.astype(np.int32), classes)


def breast_cancer() -> Dataset:
    """569 tumours by 30 measurements: malignant (0) or benign (1)."""
    found = load_breast_cancer()
    classes = tuple(str(name) for name in found.target_names)
    return Dataset("breast_cancer", "binary", found.data, found.target.astype(np.int32), classes)


def diabetes() -> Dataset:
    """442 patients by 10 measurements; how far their disease has gone a year later."""
    found = load_diabetes(scaled=False)
    unit = "points of the disease progression score"
    return Dataset("diabetes", "regression", found.data, found.target.astype(np.float64), unit=unit)
