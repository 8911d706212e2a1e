"""Checkpoints of others: names and layouts, shards, bfloat16, errors, parity with transformers."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop
from jaxprop.checking.compiling import quickly
from jaxprop.models import huggingface
from jaxprop.models.huggingface import CheckpointError
from jaxprop.models.huggingface.settings import model_of, settings_of
from jaxprop.models.inputs import IGNORED, Inputs
from jaxprop.models.language import LanguageModel
from jaxprop.models.llama import LlamaConfig, llama
from jaxprop.rules.rotary_scaling import LinearScaling, Llama3Scaling, NtkScaling, YarnScaling
from tests.models.test_transformer import LABELS, REDUCED, TOKENS, VOCABULARY, parameters, tiny_gpt2
from tests.tolerances import assert_near

safetensors = pytest.importorskip("safetensors.numpy")


def tiny_llama(**options: Any) -> LanguageModel:
    """Two pairs in a head and two heads of a key head, so that their order counts."""
    shape = {"width": 8, "depth": 2, "heads": 4, "key_heads": 2, "hidden": 10, "head_size": 4}
    return llama(LlamaConfig(VOCABULARY, **shape, **options))


MODELS: dict[str, Callable[[], LanguageModel]] = {
    "gpt2": tiny_gpt2,
    "gpt2, untied": lambda: tiny_gpt2(tied=False, hidden=10, eps=1e-3),
    "llama": tiny_llama,
    "llama 3": lambda: tiny_llama(scaling=Llama3Scaling(8.0, 1.0, 4.0, 16), tied=True, base=9.0),
    "linear": lambda: tiny_llama(scaling=LinearScaling(2.0)),
    "yarn": lambda: tiny_llama(scaling=YarnScaling(4.0, 16), base=50.0),
    "mistral": lambda: tiny_llama(window=3),
    "qwen2": lambda: tiny_llama(qkv_bias=True, tied=True),
    "qwen2, windowed": lambda: tiny_llama(qkv_bias=True, window=3),
}


def float32(model: LanguageModel) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), parameters(model))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A GPT-2 in one file."""
    model = tiny_gpt2()
    huggingface.save(tmp_path / "saved", model, float32(model))
    return tmp_path / "saved"


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.load_file(folder / "model.safetensors")


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    tensors = tensors_of(folder)
    change(tensors)
    safetensors.save_file(tensors, folder / "model.safetensors")


def reconfigure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tensors_of_header(content: bytes) -> list[tuple[str, int]]:
    """The name and the end of each tensor, as the file's first bytes have them."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return [(n, t["data_offsets"][1]) for n, t in header.items() if n != "__metadata__"]


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        huggingface.load(folder)
    return str(refused.value).replace(str(folder), "FOLDER")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shard", [10**9, 300], ids=["whole", "shards"])
def test_what_is_saved_is_loaded_bit_for_bit(name: str, shard: int, tmp_path: Path) -> None:
    model = MODELS[name]()
    params = float32(model)
    huggingface.save(tmp_path / "saved", model, params, max_shard_bytes=shard)
    again, loaded = huggingface.load(tmp_path / "saved")
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    count = len(list((tmp_path / "saved").glob("*.safetensors")))
    assert count == 1 if shard == 10**9 else count > 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_is_kept_unless_another_is_asked_for(dtype: str, tmp_path: Path) -> None:
    model = tiny_llama()
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), float32(model))
    huggingface.save(tmp_path / "saved", model, params)
    _, loaded = huggingface.load(tmp_path / "saved")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded)} == {dtype}
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    _, wide = huggingface.load(tmp_path / "saved", dtype="float32")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(wide)} == {"float32"}


def test_gpt2_lies_in_to_out_and_llama_out_to_in(tmp_path: Path) -> None:
    for name, make, tensor, shape in (
        ("g", tiny_gpt2, "transformer.h.1.attn.c_attn.weight", (4, 12)),
        ("l", tiny_llama, "model.layers.1.mlp.down_proj.weight", (8, 10)),
        ("k", tiny_llama, "model.layers.0.self_attn.k_proj.weight", (8, 8)),
        ("h", tiny_llama, "lm_head.weight", (7, 8)),
    ):
        model = make()
        huggingface.save(tmp_path / name, model, float32(model))
        assert tensors_of(tmp_path / name)[tensor].shape == shape


def test_names_without_a_prefix_and_old_buffers_are_read(saved: Path) -> None:
    _, before = huggingface.load(saved)

    def rename(tensors: dict[str, np.ndarray]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = np.ones((1, 1, 8, 8), np.uint8)
        tensors["h.1.attn.masked_bias"] = np.float32(-1e4).reshape(1)

    rewrite(saved, rename)
    _, after = huggingface.load(saved)
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_a_tied_head_may_be_in_the_file_where_it_is_the_embedding(saved: Path) -> None:
    def add(tensors: dict[str, np.ndarray], by: float = 0.0) -> None:
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + np.float32(by)

    rewrite(saved, add)
    assert "head" not in huggingface.load(saved)[1]
    rewrite(saved, lambda tensors: add(tensors, 1.0))
    assert refusal(saved) == (
        "huggingface: FOLDER/model.safetensors: the tensor lm_head.weight must equal the "
        "embedding, as config.json says that they are tied, got another. Set tie_word_embeddings "
        "to false."
    )


def test_a_missing_tensor_is_named(saved: Path) -> None:
    rewrite(saved, lambda tensors: tensors.pop("transformer.h.1.mlp.c_fc.bias"))
    assert refusal(saved) == (
        "huggingface: FOLDER: the tensor transformer.h.1.mlp.c_fc.bias is missing. Restore the "
        "file, or correct config.json."
    )


def test_an_unknown_tensor_is_named(saved: Path) -> None:
    rewrite(saved, lambda tensors: tensors.update(extra=np.zeros(2, np.float32)))
    assert refusal(saved) == (
        "huggingface: FOLDER/model.safetensors: the tensor extra is unknown to Gpt2Config. The "
        "network here has no such parameter: check config.json, or leave the tensor out."
    )


def test_a_tensor_of_another_shape_is_named(saved: Path) -> None:
    name = "transformer.h.0.attn.c_attn.weight"
    rewrite(saved, lambda tensors: tensors.update({name: np.zeros((12, 4), np.float32)}))
    assert refusal(saved) == (
        f"huggingface: FOLDER/model.safetensors: the tensor {name} must be (4, 12), got (12, 4). "
        "Correct config.json, which says how large it is."
    )


def test_a_tensor_of_integers_is_named(saved: Path) -> None:
    name = "transformer.ln_f.weight"
    rewrite(saved, lambda tensors: tensors.update({name: np.zeros(4, np.int8)}))
    assert refusal(saved) == (
        f"huggingface: FOLDER/model.safetensors: the tensor {name} must be floating, got I8. Give "
        "a checkpoint that is not quantised."
    )


def test_a_file_that_is_cut_off_names_the_tensor(saved: Path) -> None:
    path = saved / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    said = refusal(saved)
    assert said.startswith(
        "huggingface: FOLDER/model.safetensors is cut off before the end of the tensor transformer."
    )
    assert said.endswith("Fetch it again.")
    first = min(tensors_of_header(content), key=lambda each: each[1])[0]
    path.write_bytes(content[: 8 + int.from_bytes(content[:8], "little")])
    assert refusal(saved) == (
        "huggingface: FOLDER/model.safetensors is cut off before the end of the tensor "
        f"{first}. Fetch it again."
    )


@pytest.mark.parametrize(
    "content", [b"", b"12345", b"\x02" + bytes(7) + b"[]", b"\x09" + bytes(7) + b'{"a": {}}']
)
def test_a_file_that_is_no_safetensors_is_named(content: bytes, saved: Path) -> None:
    (saved / "model.safetensors").write_bytes(content)
    said = refusal(saved)
    assert said.startswith("huggingface: FOLDER/model.safetensors is no safetensors: ")
    assert said.endswith(". Fetch it again.")


def test_a_tensor_under_two_names_is_refused(saved: Path) -> None:
    rewrite(saved, lambda tensors: tensors.update({"wte.weight": np.zeros((7, 4), np.float32)}))
    first, second = "transformer.wte.weight", "wte.weight"
    if refusal(saved).startswith(f"huggingface: FOLDER/model.safetensors: the tensor {first}"):
        first, second = second, first
    assert refusal(saved) == (
        f"huggingface: FOLDER/model.safetensors: the tensor {second} must be there once, got it "
        f"as {first} in FOLDER/model.safetensors too. Leave one of them out."
    )


def test_a_shard_that_is_absent_or_lacks_its_tensor_is_named(tmp_path: Path) -> None:
    model = tiny_gpt2()
    folder = tmp_path / "saved"
    huggingface.save(folder, model, float32(model), max_shard_bytes=300)
    shard = sorted(folder.glob("*.safetensors"))[1]
    tensors = safetensors.load_file(shard)
    lost, *_ = tensors
    safetensors.save_file(
        {k: v for k, v in tensors.items() if k != lost} or {"x": np.zeros(1)}, shard
    )
    assert refusal(folder) == (
        f"huggingface: FOLDER/{shard.name}: the tensor {lost} is missing, which "
        "model.safetensors.index.json says it has. Fetch the file again."
    )
    shard.unlink()
    assert refusal(folder) == (
        f"huggingface: FOLDER/{shard.name} must be there: it has the tensor {min(tensors)}, says "
        "model.safetensors.index.json. Fetch it."
    )
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": 3}}')
    assert refusal(folder).startswith(
        "huggingface: FOLDER/model.safetensors.index.json must have a weight_map, got: TypeError"
    )


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path, saved: Path) -> None:
    assert refusal(tmp_path / "none") == (
        "huggingface: FOLDER must be a folder with config.json and safetensors files, got no "
        "FOLDER/config.json. Give what save_pretrained made."
    )
    (saved / "model.safetensors").unlink()
    assert refusal(saved) == (
        "huggingface: FOLDER must have model.safetensors or model.safetensors.index.json, got "
        "neither. Convert other formats with save_pretrained."
    )
    (saved / "config.json").write_text("{")
    assert refusal(saved).startswith("huggingface: FOLDER/config.json must be JSON, got: ")
    (saved / "config.json").write_text("[]")
    assert refusal(saved) == "huggingface: FOLDER/config.json must be a JSON object, got list."


@pytest.mark.parametrize(
    ("make", "changes", "says"),
    [
        (
            tiny_gpt2,
            {"model_type": "bert"},
            "model_type must be one of gpt2, llama, mistral, qwen2",
        ),
        (tiny_gpt2, {"model_type": ["gpt2"]}, "model_type must be one of gpt2"),
        (tiny_gpt2, {"quantization_config": {"bits": 4}}, "quantization_config must be left out"),
        (tiny_gpt2, {"layer_norm_epsilon": None}, "layer_norm_epsilon must be a number, got None"),
        (tiny_gpt2, {"activation_function": "relu"}, "activation_function must be 'gelu_new'"),
        (tiny_gpt2, {"scale_attn_by_inverse_layer_idx": True}, "must be False, got True"),
        (tiny_gpt2, {"n_head": 3}, "heads must divide width, got 3 and 4"),
        (tiny_gpt2, {"n_embd": None}, "width must be a positive whole number, got None"),
        (tiny_llama, {"hidden_act": "gelu"}, "hidden_act must be 'silu', got 'gelu'"),
        (tiny_llama, {"attention_bias": True}, "attention_bias must be False, got True"),
        (tiny_llama, {"mlp_bias": True}, "mlp_bias must be False, got True"),
        (tiny_llama, {"rope_parameters": {"rope_type": "linear"}}, "must have 'factor', got none"),
        (
            tiny_llama,
            {"rope_parameters": {"rope_type": "linear", "factor": None}},
            "factor must be a number, got None",
        ),
        (
            lambda: tiny_llama(scaling=YarnScaling(4.0, 16)),
            {
                "rope_parameters": {"rope_type": "yarn", "factor": 4, "attention_factor": 1.0}
                | {"original_max_position_embeddings": 16}
            },
            "attention_factor must be None or 1.138629436111989, got 1.0",
        ),
        (lambda: tiny_llama(window=3), {"sliding_window": 0}, "window must be a positive whole"),
        (
            tiny_llama,
            {"rope_parameters": {"rope_type": "dynamic"}},
            "must be one of default, linear",
        ),
        (tiny_llama, {"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1.0, got 0.5"),
        (
            lambda: tiny_llama(window=3),
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types must be the same in every block",
        ),
        (
            lambda: tiny_llama(window=3, qkv_bias=True),
            {"max_window_layers": 1},
            "layer_types must be the same in every block",
        ),
    ],
)
def test_what_is_not_computed_here_is_refused(
    make: Callable, changes: dict, says: str, tmp_path: Path
) -> None:
    model = make()
    huggingface.save(tmp_path / "saved", model, float32(model))
    reconfigure(tmp_path / "saved", **changes)
    said = refusal(tmp_path / "saved")
    assert said.startswith("huggingface: config.json")
    assert says in said


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}},
    ],
)
def test_both_spellings_of_rope_are_read(spelling: dict, tmp_path: Path) -> None:
    model = tiny_llama()
    huggingface.save(tmp_path / "saved", model, float32(model))
    cleared = {"rope_theta": None, "rope_scaling": None, "rope_parameters": None}
    reconfigure(tmp_path / "saved", **cleared | spelling)
    config = huggingface.load(tmp_path / "saved")[0].config
    assert (config.base, config.scaling) == (500.0, LinearScaling(4.0))


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({"model_type": "llama", "sliding_window": 3}, None),
        ({"model_type": "mistral", "sliding_window": 3}, 3),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "mistral"}, 4096),
        ({"model_type": "qwen2", "sliding_window": 3, "use_sliding_window": False}, None),
        ({"model_type": "qwen2", "sliding_window": 3, "use_sliding_window": True}, None),
        (
            {"model_type": "qwen2", "sliding_window": 3, "use_sliding_window": True}
            | {"max_window_layers": 0},
            3,
        ),
        (
            {"model_type": "qwen2", "sliding_window": 3, "use_sliding_window": True}
            | {"layer_types": ["full_attention", "full_attention"]},
            None,
        ),
    ],
)
def test_windows_are_those_of_each_family(changes: dict, window: int | None) -> None:
    """Qwen 2's first 28 blocks see all unless it says otherwise; Mistral's see 4096 back."""
    settings = settings_of(tiny_llama()) | changes
    assert model_of(settings).config.window == window


def test_a_dtype_that_is_not_floating_is_refused(saved: Path) -> None:
    says = "huggingface: dtype must be floating, got int8. Give float32 or bfloat16, or None for"
    with pytest.raises(CheckpointError) as refused:
        huggingface.load(saved, dtype="int8")
    assert str(refused.value) == f"{says} what the file has."
    whole = jax.tree.map(lambda leaf: leaf.astype(jnp.int8), float32(tiny_gpt2()))
    with pytest.raises(CheckpointError) as refused:
        huggingface.save(saved.parent / "whole", tiny_gpt2(), whole)
    assert str(refused.value) == f"{says} what the file has."


def test_a_scaling_without_a_spelling_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    model = tiny_llama(scaling=NtkScaling(2.0))
    with pytest.raises(CheckpointError) as refused:
        huggingface.save(tmp_path / "saved", model, float32(model))
    assert str(refused.value) == (
        "huggingface: config.json has no spelling for NtkScaling(factor=2.0, gain=1.0). Use "
        "LinearScaling, Llama3Scaling or YarnScaling."
    )
    assert not (tmp_path / "saved").exists()


def test_libraries_that_are_not_installed_are_named(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (saved / "tokenizer.json").write_text("{}")
    for name, use in (
        ("safetensors", huggingface.load),
        ("tokenizers", huggingface.tokenizer),
    ):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ModuleNotFoundError) as missing:
            use(saved)
        assert missing.value.name == name
        assert str(missing.value) == (
            f"huggingface: needs {name}, which is not installed. Install the extra `models`, as in "
            "pip install -e '.[models]'."
        )


def test_nothing_is_overwritten(saved: Path) -> None:
    before = (saved / "model.safetensors").read_bytes()
    model = tiny_gpt2()
    with pytest.raises(CheckpointError, match="save needs a new or an empty folder"):
        huggingface.save(saved, model, float32(model))
    assert (saved / "model.safetensors").read_bytes() == before


def test_params_of_another_model_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="params must have the structure"):
        huggingface.save(tmp_path / "saved", tiny_gpt2(), float32(tiny_llama()))
    params = float32(tiny_gpt2())
    params["embedding"] = params["embedding"][:3]
    with pytest.raises(
        CheckpointError, match=r"params\['embedding'\] must be \(7, 4\), got \(3, 4\)"
    ):
        huggingface.save(tmp_path / "saved", tiny_gpt2(), params)
    assert not (tmp_path / "saved").exists()


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("x64")
def test_logits_loss_and_every_gradient_are_those_of_transformers(
    name: str, tmp_path: Path
) -> None:
    """What save wrote, read by transformers in float64; the second example is padded.

    Theirs is told so by a mask; here it is enough that its labels are ignored.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = MODELS[name]()
    params = parameters(model)
    huggingface.save(tmp_path / "saved", model, params)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", dtype=torch.float64, attn_implementation="eager"
    ).eval()
    there = np.ones(TOKENS.shape, bool)
    there[1, -2:] = False  # fewer than a window: of a token that sees none, theirs makes nan
    labels = np.where(there, LABELS, IGNORED)
    logits = theirs(torch.tensor(TOKENS), attention_mask=torch.tensor(there).long()).logits
    # Theirs ignores -100.
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(np.where(labels == IGNORED, -100, labels)).flatten()
    )
    loss.backward()
    theirs_params = {n: p.grad for n, p in theirs.named_parameters()}

    # Llama's norms and rotary angles are computed in float32 there, whatever the dtype.
    kind = jnp.float64 if name.startswith("gpt2") else jnp.float32

    def assert_same(mine: jax.Array, truth: Any) -> None:
        assert_near(jnp.asarray(mine, kind), truth.detach().numpy(), reduced=REDUCED)

    x = Inputs(jnp.asarray(TOKENS))
    ours, dparams = quickly(jaxprop.value_and_grad(model.cost))(params, x, jnp.asarray(labels))
    assert_same(model.network.reference(params, x)[there], logits[torch.tensor(there)])
    assert_same(ours, loss)
    huggingface.save(tmp_path / "gradients", model, dparams)
    written = tensors_of(tmp_path / "gradients")
    assert set(written) == set(theirs_params)
    for each, gradient in theirs_params.items():
        assert_same(written[each], gradient)


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.parametrize(
    "scaling",
    [
        LinearScaling(4.0),
        Llama3Scaling(8.0, 1.0, 4.0, 8192),
        YarnScaling(4.0, 32768),
        YarnScaling(16.0, 4096, fast=40.0, slow=2.0),
        YarnScaling(0.5, 64),
    ],
    ids=repr,
)
@pytest.mark.usefixtures("x64")
def test_stretched_frequencies_are_those_of_transformers(scaling: Any) -> None:
    """At the head sizes and bases that are in use."""
    transformers = pytest.importorskip("transformers")
    ropes = pytest.importorskip("transformers.modeling_rope_utils").ROPE_INIT_FUNCTIONS
    for base, size in ((10000.0, 64), (500000.0, 128)):
        config = settings_of(tiny_llama(scaling=scaling, base=base)) | {"head_dim": size}
        kind = config["rope_parameters"]["rope_type"]
        theirs, gain = ropes[kind](transformers.LlamaConfig(**config), "cpu")
        assert scaling.gain == gain
        ratio = scaling.frequencies(base, size) / theirs.double().numpy()
        # They have them in float32; the slowest pair is to be as near as the fastest.
        assert_near(jnp.asarray(ratio, jnp.float32), np.ones(size // 2), reduced=64)


# Of each family what save_pretrained writes of it, and what of that is not in every one.
THEIRS: dict[str, tuple[str, dict]] = {
    "gpt2": ("GPT2", {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16}),
    "llama": ("Llama", {"head_dim": 4, "rope_theta": 777.0, "mlp_bias": False}),
    "llama 3": (
        "Llama",
        {
            "tie_word_embeddings": True,
            "max_position_embeddings": 64,
            "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
            | {"high_freq_factor": 4.0, "original_max_position_embeddings": 16},
        },
    ),
    "mistral": ("Mistral", {"sliding_window": 3}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True, "sliding_window": 3}),
}
SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 1, "intermediate_size": 12, "vocab_size": VOCABULARY}


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", THEIRS)
def test_what_transformers_saves_is_read(name: str, dtype: str, tmp_path: Path) -> None:
    """With its own config.json: float32 in one file, bfloat16 in shards."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    family, options = THEIRS[name]
    sizes = {"vocab_size": VOCABULARY} if family == "GPT2" else SIZES
    config = getattr(transformers, f"{family}Config")(**sizes | options)
    theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.5)
    theirs.to(getattr(torch, dtype)).save_pretrained(
        tmp_path, max_shard_size="1KB" if dtype == "bfloat16" else "1GB"
    )
    # Read again: the conversion above rounds their frequencies too.
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model, params = huggingface.load(tmp_path)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
    with torch.no_grad():
        truth = theirs(torch.tensor(TOKENS)).logits.numpy()
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    got = model.network.reference(wide, Inputs(jnp.asarray(TOKENS)))
    assert_near(got, truth, reduced=REDUCED)


def test_the_tokenizer_beside_the_weights_is_read(saved: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json must be there"):
        huggingface.tokenizer(saved)
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    made.save(str(saved / "tokenizer.json"))
    assert huggingface.tokenizer(saved).encode("b").ids == [1]
    (saved / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is no tokenizer: .*Fetch it again"):
        huggingface.tokenizer(saved)
