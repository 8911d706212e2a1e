"""config.json as the configuration of a network here, and back."""

from collections.abc import Mapping
from typing import Any

from jaxprop.models.gpt2 import Gpt2Config, gpt2
from jaxprop.models.huggingface.errors import CheckpointError
from jaxprop.models.language import LanguageModel
from jaxprop.models.llama import LlamaConfig, llama
from jaxprop.rules.rotary_scaling import LinearScaling, Llama3Scaling, Scaling, YarnScaling

Settings = Mapping[str, Any]
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")


def model_of(config: Settings) -> LanguageModel:
    """The network that a config.json describes.

    Raises CheckpointError where it asks for what the networks here do not compute, or lacks a size.
    """
    kind = config.get("model_type")
    readers = {"gpt2": _gpt2, "llama": _llama, "mistral": _llama, "qwen2": _llama}
    if not isinstance(kind, str) or kind not in readers:
        raise CheckpointError(
            f"config.json: model_type must be one of {', '.join(readers)}, got {kind!r}. Other "
            "architectures are not here."
        )
    if config.get("quantization_config") is not None:
        raise CheckpointError(
            "config.json: quantization_config must be left out, got one. Give the checkpoint that "
            "is not quantised."
        )
    try:
        return readers[kind](config)
    except CheckpointError:
        raise
    except KeyError as error:
        raise CheckpointError(f"config.json must have {error.args[0]!r}, got none.") from None
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"config.json: {error}") from None


def _gpt2(config: Settings) -> LanguageModel:
    _require(config, "activation_function", "gelu_new", TANH_GELU)
    _require(config, "scale_attn_weights", True, (True,))
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        _require(config, name, False, (False,))
    return gpt2(
        Gpt2Config(
            vocabulary=config["vocab_size"],
            width=config["n_embd"],
            depth=config["n_layer"],
            heads=config["n_head"],
            context=config["n_positions"],
            hidden=config.get("n_inner"),
            tied=config.get("tie_word_embeddings", True),
            eps=_number(config, "layer_norm_epsilon", 1e-5),
        )
    )


def _llama(config: Settings) -> LanguageModel:
    qwen = config["model_type"] == "qwen2"
    _require(config, "hidden_act", "silu", ("silu",))
    for name in ("mlp_bias", "attention_bias"):
        _require(config, name, False, (False,))
    base, scaling = _rope(config)
    return llama(
        LlamaConfig(
            vocabulary=config["vocab_size"],
            width=config["hidden_size"],
            depth=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            hidden=config["intermediate_size"],
            key_heads=config.get("num_key_value_heads"),
            head_size=config.get("head_dim"),
            tied=config.get("tie_word_embeddings", False),
            qkv_bias=qwen,
            window=_window(config),
            base=base,
            scaling=scaling,
            eps=_number(config, "rms_norm_eps", 1e-6),
        )
    )


def _window(config: Settings) -> int | None:
    """How far every block sees; CheckpointError where the blocks differ."""
    family, window = config["model_type"], config.get("sliding_window", 4096)
    windowed = family == "mistral" or (family == "qwen2" and config.get("use_sliding_window"))
    if not windowed or window is None:
        return None
    kinds = set(config.get("layer_types") or _layer_types(config))
    if len(kinds) > 1:
        raise CheckpointError(
            f"config.json: layer_types must be the same in every block, got {sorted(kinds)}. Mixed "
            "windows are not here."
        )
    return window if kinds == {"sliding_attention"} else None


def _layer_types(config: Settings) -> set[str]:
    """Of Qwen 2 the first max_window_layers blocks see all; of Mistral none does."""
    depth = config["num_hidden_layers"]
    first = config.get("max_window_layers", 28) if config["model_type"] == "qwen2" else 0
    kinds = {"full_attention"} if first > 0 else set()
    return kinds | ({"sliding_attention"} if first < depth else set())


def _rope(config: Settings) -> tuple[float, Scaling | None]:
    """(base, scaling), in the older spelling (rope_theta, rope_scaling) or the newer one."""
    given = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    base = given.get("rope_theta") or config.get("rope_theta") or 10000.0
    kind = given.get("rope_type") or given.get("type") or "default"
    share = given.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if share != 1.0:
        raise CheckpointError(
            f"config.json: partial_rotary_factor must be 1.0, got {share}. Other ones are not here."
        )
    if kind == "default":
        return float(base), None
    if kind not in ("linear", "llama3", "yarn"):
        raise CheckpointError(
            f"config.json: rope_type must be one of default, linear, llama3, yarn, got {kind!r}. "
            "Other ones are not here."
        )
    factor = _number(given, "factor")
    if kind == "linear":
        return float(base), LinearScaling(factor)
    trained = given.get("original_max_position_embeddings") or config["max_position_embeddings"]
    if kind == "llama3":
        low, high = _number(given, "low_freq_factor"), _number(given, "high_freq_factor")
        return float(base), Llama3Scaling(factor, low, high, trained)
    return float(base), _yarn(given, factor, trained)


def _yarn(given: Settings, factor: float, trained: int) -> YarnScaling:
    fast, slow = given.get("beta_fast") or 32.0, given.get("beta_slow") or 1.0
    scaling = YarnScaling(factor, trained, float(fast), float(slow))
    _require(given, "attention_factor", None, (None, scaling.gain))
    for name in ("mscale", "mscale_all_dim"):
        _require(given, name, None, (None,))
    _require(given, "truncate", True, (True,))
    return scaling


def _number(given: Settings, name: str, default: float | None = None) -> float:
    value = given[name] if default is None else given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise CheckpointError(f"config.json: {name} must be a number, got {value!r}.")
    return float(value)


def _require(config: Settings, name: str, default: Any, allowed: tuple) -> None:
    got = config.get(name, default)
    if got not in allowed:
        ways = " or ".join(repr(value) for value in allowed)
        raise CheckpointError(
            f"config.json: {name} must be {ways}, got {got!r}. The networks here compute no other."
        )


def settings_of(model: LanguageModel) -> dict[str, Any]:
    """The config.json of a network here."""
    config = model.config
    return _of_gpt2(config) if isinstance(config, Gpt2Config) else _of_llama(config)


def _of_gpt2(config: Gpt2Config) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocabulary,
        "n_embd": config.width,
        "n_layer": config.depth,
        "n_head": config.heads,
        "n_positions": config.context,
        "n_inner": config.hidden,
        "layer_norm_epsilon": config.eps,
        "activation_function": "gelu_new",
        "tie_word_embeddings": config.tied,
    }


def _of_llama(config: LlamaConfig) -> dict[str, Any]:
    kind = "qwen2" if config.qkv_bias else "llama" if config.window is None else "mistral"
    names = {"qwen2": "Qwen2", "llama": "Llama", "mistral": "Mistral"}
    rope = {"rope_theta": config.base, **_of_scaling(config.scaling)}
    settings = {
        "architectures": [f"{names[kind]}ForCausalLM"],
        "model_type": kind,
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_heads_or_heads,
        "intermediate_size": config.hidden,
        "rms_norm_eps": config.eps,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tied,
        "rope_theta": config.base,
        "rope_parameters": rope,
    }
    if config.head_size is not None:
        settings["head_dim"] = config.head_size
    if config.scaling is not None:
        settings["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
    if kind != "llama":
        settings["sliding_window"] = config.window
    if kind == "qwen2":
        windowed = config.window is not None
        settings |= {
            "use_sliding_window": windowed,
            "max_window_layers": 0 if windowed else config.depth,
        }
    return settings


def _of_scaling(scaling: Scaling | None) -> dict[str, Any]:
    if scaling is None:
        return {"rope_type": "default"}
    if isinstance(scaling, LinearScaling):
        return {"rope_type": "linear", "factor": scaling.factor}
    if isinstance(scaling, Llama3Scaling):
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": scaling.trained_length,
        }
    if isinstance(scaling, YarnScaling):
        return {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.trained_length,
            "beta_fast": scaling.fast,
            "beta_slow": scaling.slow,
        }
    raise CheckpointError(
        f"config.json has no spelling for {scaling!r}. Use LinearScaling, Llama3Scaling or "
        "YarnScaling."
    )
