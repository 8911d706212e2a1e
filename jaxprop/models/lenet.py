"""A convolutional network after LeNet: convolutions and poolings, then dense layers."""

from dataclasses import dataclass

from jaxprop.composition import chain
from jaxprop.convolutional import convolution, flatten
from jaxprop.layers import Layer, dense
from jaxprop.models.classifier import Classifier, classifier
from jaxprop.models.sizes import check_each, check_sizes
from jaxprop.rule import Rule
from jaxprop.rules.activations import relu
from jaxprop.rules.pooling import max_pool


@dataclass(frozen=True)
class LeNetConfig:
    """The shape of a LeNet-style network.

    image:      (height, width, colours); each pooling halves height and width.
    classes:    units of the output layer.
    channels:   of the convolutions; after each comes a pooling.
    widths:     units of the dense layers before the output.
    window:     how many places a convolution sees, along height and width.
    activation: of every convolution and dense layer but the output, a rule of one array.
    """

    image: tuple[int, int, int]
    classes: int
    channels: tuple[int, ...] = (6, 16)
    widths: tuple[int, ...] = (120, 84)
    window: int = 5
    activation: Rule = relu

    def __post_init__(self) -> None:
        check_sizes("LeNetConfig", classes=self.classes, window=self.window)
        check_each("LeNetConfig", image=self.image, channels=self.channels, widths=self.widths)
        if len(self.image) != 3:
            raise ValueError(
                f"LeNetConfig: image must be (height, width, colours), got {self.image}."
            )
        least = 2 ** len(self.channels)
        if min(self.image[:2]) < least:
            raise ValueError(
                f"LeNetConfig: an image must be at least {least} places high and wide, to be "
                f"halved {len(self.channels)} times, got {self.image[0]} x {self.image[1]}. Take "
                "fewer channels."
            )


def lenet(config: LeNetConfig) -> Classifier:
    """Make a LeNet-style network: (convolution, max pooling) for each of channels, dense layers.

    Args:
        config: its shape.

    Returns:
        A Classifier over x (B, height, width, colours). Its network is a chain, and its params are

            conv_k:   w (window, window, channels before, channels), b (channels,)
            pool_k:   none
            flatten:  none
            hidden_k: w (n_in, n), b (n,)
            output:   w (n_in, classes), b (classes,)

        Backward is Algorithm 6.4: dense layers, g laid back into an image, and per convolution the
        pooling, which hands each number of g to the place that was largest, the activation, and the
        two products of the affine map.

    Numerics: of entries that tie in a pooling window, the first gets g; after relu ties at 0 are
        common, and get none past it.

    Source: LeCun et al. (1998), Gradient-based learning applied to document recognition, figure 2.
        Not as there: padded convolutions, so that images of any size fit; the largest of a window
        in place of its scaled sum; relu; logits.
    """
    return classifier(config, _network(config), config.image)


def _network(config: LeNetConfig) -> Layer:
    window = (config.window, config.window)
    pool = max_pool.bind(window=(2, 2), stride=(2, 2), padding="VALID")
    layers: dict[str, Rule] = {}
    for k, channels in enumerate(config.channels, start=1):
        layers[f"conv_{k}"] = convolution(channels, window, config.activation)
        layers[f"pool_{k}"] = pool
    layers["flatten"] = flatten()
    for k, width in enumerate(config.widths, start=1):
        layers[f"hidden_{k}"] = dense(width, config.activation)
    return chain(**layers, output=dense(config.classes))
