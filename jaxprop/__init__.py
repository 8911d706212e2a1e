"""Neural-network training in JAX with hand-derived, checked backward passes.

`Rule` is the one concept: a function, the forward pass that training runs, and its
backward. Rules, layers, networks and costs are all rules; `CATALOGUE` lists the rules.
"""

from jaxprop import rules
from jaxprop.catalogue import CATALOGUE
from jaxprop.checking import Finding, Report, check
from jaxprop.composition import chain
from jaxprop.convolutional import convolution, flatten
from jaxprop.costs import Cost, cost, value_and_grad
from jaxprop.derivation import derive
from jaxprop.fan_out import parallel
from jaxprop.freezing import freeze
from jaxprop.layers import Layer, dense, elementwise, normalisation
from jaxprop.repetition import repeat
from jaxprop.reversible import reversible
from jaxprop.rule import Case, Rule, automatic
from jaxprop.rules.activations import identity, leaky_relu, relu, sigmoid, softplus, tanh
from jaxprop.rules.activity import activity_l1, activity_l2
from jaxprop.rules.add_norm import add_layer_norm, add_rms_norm
from jaxprop.rules.algebraic import soft_cap, soft_sign, squareplus
from jaxprop.rules.attention import attention
from jaxprop.rules.batch_norm import batch_norm, batch_norm_eval
from jaxprop.rules.bilinear import bilinear
from jaxprop.rules.binary_cross_entropy import sigmoid_binary_cross_entropy
from jaxprop.rules.causal_conv import causal_depthwise_conv
from jaxprop.rules.conv import conv
from jaxprop.rules.conv_transpose import conv_transpose
from jaxprop.rules.cross_entropy import softmax_cross_entropy
from jaxprop.rules.divergence import kl_divergence
from jaxprop.rules.dropout import drop_path, dropout, gaussian_noise
from jaxprop.rules.embedding import embedding
from jaxprop.rules.exponential_units import celu, elu, log_sigmoid, selu
from jaxprop.rules.gated import geglu, glu, reglu, swiglu
from jaxprop.rules.global_pooling import global_avg_pool, global_max_pool
from jaxprop.rules.group_norm import group_norm, instance_norm
from jaxprop.rules.gru import gru
from jaxprop.rules.layer_norm import layer_norm, rms_norm
from jaxprop.rules.linear import linear, tied_unembedding
from jaxprop.rules.linear_cross_entropy import linear_cross_entropy
from jaxprop.rules.lora import lora_linear
from jaxprop.rules.losses import mean_squared_error
from jaxprop.rules.lstm import lstm
from jaxprop.rules.penalties import elastic_net, l1, l2
from jaxprop.rules.piecewise import hard_sigmoid, hard_tanh, prelu, relu6
from jaxprop.rules.pixel_shuffle import pixel_shuffle, pixel_unshuffle
from jaxprop.rules.pooling import avg_pool, max_pool
from jaxprop.rules.projection import projection
from jaxprop.rules.resizing import resize_bilinear, resize_nearest
from jaxprop.rules.rnn import rnn
from jaxprop.rules.robust_losses import huber, log_cosh, mean_absolute_error
from jaxprop.rules.rotary import rotary
from jaxprop.rules.self_gated import gelu, hard_silu, mish, relu_squared, silu
from jaxprop.rules.softmax import log_softmax, logsumexp, softmax
from jaxprop.rules.structured_penalties import group_lasso, orthogonality
from jaxprop.rules.surrogates import (
    clip_gradient,
    reverse_gradient,
    scale_gradient,
    straight_through_round,
    straight_through_sign,
)
from jaxprop.rules.token_log_probs import linear_token_log_probs, token_log_probs
from jaxprop.rules.weight_normalisation import l2_normalize, weight_norm, weight_standardize
from jaxprop.structure import checkpointed, post_norm, pre_norm, residual
from jaxprop.tracing import Trace, trace

__all__ = [
    "CATALOGUE",
    "Case",
    "Cost",
    "Finding",
    "Layer",
    "Report",
    "Rule",
    "Trace",
    "activity_l1",
    "activity_l2",
    "add_layer_norm",
    "add_rms_norm",
    "attention",
    "automatic",
    "avg_pool",
    "batch_norm",
    "batch_norm_eval",
    "bilinear",
    "causal_depthwise_conv",
    "celu",
    "chain",
    "check",
    "checkpointed",
    "clip_gradient",
    "conv",
    "conv_transpose",
    "convolution",
    "cost",
    "dense",
    "derive",
    "drop_path",
    "dropout",
    "elastic_net",
    "elementwise",
    "elu",
    "embedding",
    "flatten",
    "freeze",
    "gaussian_noise",
    "geglu",
    "gelu",
    "global_avg_pool",
    "global_max_pool",
    "glu",
    "group_lasso",
    "group_norm",
    "gru",
    "hard_sigmoid",
    "hard_silu",
    "hard_tanh",
    "huber",
    "identity",
    "instance_norm",
    "kl_divergence",
    "l1",
    "l2",
    "l2_normalize",
    "layer_norm",
    "leaky_relu",
    "linear",
    "linear_cross_entropy",
    "linear_token_log_probs",
    "log_cosh",
    "log_sigmoid",
    "log_softmax",
    "logsumexp",
    "lora_linear",
    "lstm",
    "max_pool",
    "mean_absolute_error",
    "mean_squared_error",
    "mish",
    "normalisation",
    "orthogonality",
    "parallel",
    "pixel_shuffle",
    "pixel_unshuffle",
    "post_norm",
    "pre_norm",
    "prelu",
    "projection",
    "reglu",
    "relu",
    "relu6",
    "relu_squared",
    "repeat",
    "residual",
    "resize_bilinear",
    "resize_nearest",
    "reverse_gradient",
    "reversible",
    "rms_norm",
    "rnn",
    "rotary",
    "rules",
    "scale_gradient",
    "selu",
    "sigmoid",
    "sigmoid_binary_cross_entropy",
    "silu",
    "soft_cap",
    "soft_sign",
    "softmax",
    "softmax_cross_entropy",
    "softplus",
    "squareplus",
    "straight_through_round",
    "straight_through_sign",
    "swiglu",
    "tanh",
    "tied_unembedding",
    "token_log_probs",
    "trace",
    "value_and_grad",
    "weight_norm",
    "weight_standardize",
]
