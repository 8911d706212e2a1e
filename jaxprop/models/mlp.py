"""A multi-layer perceptron: dense layers, one after the other. The network of the notes."""

from dataclasses import dataclass

from jaxprop.composition import chain
from jaxprop.layers import Layer, dense
from jaxprop.models.classifier import Classifier, classifier
from jaxprop.models.sizes import check_each, check_sizes
from jaxprop.rule import Rule
from jaxprop.rules.activations import identity, relu


@dataclass(frozen=True)
class MlpConfig:
    """The shape of a multi-layer perceptron.

    inputs:      features of an example.
    widths:      units of the hidden layers, from the input on; none for a linear model.
    classes:     units of the output layer, whose activation is the identity: logits.
    activations: of the hidden layers, rules of one array: one for all of them, or one for each.
    """

    inputs: int
    widths: tuple[int, ...]
    classes: int
    activations: tuple[Rule, ...] = (relu,)

    def __post_init__(self) -> None:
        check_sizes("MlpConfig", inputs=self.inputs, classes=self.classes)
        check_each("MlpConfig", widths=self.widths)
        if len(self.activations) not in (1, len(self.widths)):
            raise ValueError(
                "MlpConfig: activations must be one rule, or one for each of the "
                f"{len(self.widths)} widths, got {len(self.activations)}."
            )


def mlp(config: MlpConfig) -> Classifier:
    """Make a multi-layer perceptron.

    Args:
        config: its shape.

    Returns:
        A Classifier over x (B, inputs). Its network is the chain hidden_1, hidden_2, .., output of
        `dense` layers, so its params are

            hidden_k: w (n_in, n), b (n,)
            output:   w (n_in, classes), b (classes,)

        and forward and backward are Algorithms 6.3 and 6.4 as they stand.

    Source: Goodfellow, Bengio and Courville, Deep Learning, chapter 6.
    """
    return classifier(config, perceptron(config), (config.inputs,))


def perceptron(config: MlpConfig) -> Layer:
    """The network alone."""
    activations = config.activations * (len(config.widths) if len(config.activations) == 1 else 1)
    hidden = {
        f"hidden_{k}": dense(width, activation)
        for k, (width, activation) in enumerate(zip(config.widths, activations, strict=True), 1)
    }
    return chain(**hidden, output=dense(config.classes, identity))
