"""The contents page: every rule, in the order to read them."""

from jaxprop.rule import Rule
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

CATALOGUE: tuple[Rule, ...] = (
    # Linear maps
    linear,
    projection,
    lora_linear,
    bilinear,
    tied_unembedding,
    # Activations: elementwise, then those that gate x by itself
    identity,
    relu,
    leaky_relu,
    prelu,
    relu6,
    hard_tanh,
    hard_sigmoid,
    sigmoid,
    log_sigmoid,
    tanh,
    soft_sign,
    soft_cap,
    softplus,
    squareplus,
    elu,
    celu,
    selu,
    silu,
    hard_silu,
    mish,
    gelu,
    relu_squared,
    glu,
    swiglu,
    geglu,
    reglu,
    # Normalisation to probabilities
    softmax,
    log_softmax,
    logsumexp,
    # Normalisation: of rows
    rms_norm,
    layer_norm,
    add_rms_norm,
    add_layer_norm,
    # Normalisation: of channels over a batch
    batch_norm,
    batch_norm_eval,
    # Normalisation: of examples
    group_norm,
    instance_norm,
    # Normalisation: of vectors and of weights
    l2_normalize,
    weight_standardize,
    weight_norm,
    # Convolution and pooling
    conv,
    conv_transpose,
    causal_depthwise_conv,
    max_pool,
    avg_pool,
    global_max_pool,
    global_avg_pool,
    resize_nearest,
    resize_bilinear,
    pixel_shuffle,
    pixel_unshuffle,
    # Recurrence over whole sequences
    rnn,
    lstm,
    gru,
    # Sequences
    embedding,
    rotary,
    attention,
    # Randomness
    dropout,
    drop_path,
    gaussian_noise,
    # Surrogates
    straight_through_round,
    straight_through_sign,
    reverse_gradient,
    scale_gradient,
    clip_gradient,
    # Losses: regression, then cross-entropies
    mean_squared_error,
    mean_absolute_error,
    huber,
    log_cosh,
    softmax_cross_entropy,
    linear_cross_entropy,
    token_log_probs,
    linear_token_log_probs,
    kl_divergence,
    sigmoid_binary_cross_entropy,
    # Penalties: on parameters, then on activations
    l2,
    l1,
    elastic_net,
    group_lasso,
    orthogonality,
    activity_l2,
    activity_l1,
)
