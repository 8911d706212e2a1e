"""Checkpoints of others: names and layouts, shards, bfloat16, errors, parity with transformers."""

import json
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
from jaxprop.models.transformer import IGNORED, Inputs, LanguageModel
from jaxprop.rules.rotary_scaling import LinearScaling, Llama3Scaling, YarnScaling
from tests.models.test_transformer import (
    LABELS,
    REDUCED,
    TOKENS,
    parameters,
    tiny_gpt2,
    tiny_llama,
)
from tests.tolerances import assert_near

safetensors = pytest.importorskip("safetensors.numpy")

MODELS: dict[str, Callable[[], LanguageModel]] = {
    "gpt2": tiny_gpt2,
    "gpt2, untied": lambda: tiny_gpt2(tied=False),
    "llama": tiny_llama,
    "llama 3": lambda: tiny_llama(scaling=Llama3Scaling(8.0, 1.0, 4.0, 16), tied=True),
    "linear": lambda: tiny_llama(scaling=LinearScaling(2.0)),
    "yarn": lambda: tiny_llama(scaling=YarnScaling(4.0, 16)),
    "mistral": lambda: tiny_llama(window=3),
    "qwen2": lambda: tiny_llama(qkv_bias=True, tied=True),
    "qwen2, windowed": lambda: tiny_llama(qkv_bias=True, window=2),
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
        ("l", tiny_llama, "model.layers.1.mlp.down_proj.weight", (4, 6)),
        ("k", tiny_llama, "model.layers.0.self_attn.k_proj.weight", (2, 4)),
        ("h", tiny_llama, "lm_head.weight", (7, 4)),
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
    path.write_bytes(content[:5])
    assert "model.safetensors is no safetensors" in refusal(saved)


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
    assert f"{shard.name}: the tensor {lost} is missing, which model.safetensors.index" in refusal(
        folder
    )
    shard.unlink()
    assert f"FOLDER/{shard.name} must be there: it has the tensor" in refusal(folder)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path, saved: Path) -> None:
    assert refusal(tmp_path / "none") == (
        "huggingface: FOLDER must be a folder with config.json and safetensors files, got no "
        "FOLDER/config.json. Give what save_pretrained made."
    )
    (saved / "model.safetensors").unlink()
    assert "must have model.safetensors or model.safetensors.index.json, got neither" in refusal(
        saved
    )
    (saved / "config.json").write_text("{")
    assert "FOLDER/config.json must be JSON" in refusal(saved)


@pytest.mark.parametrize(
    ("make", "changes", "says"),
    [
        (
            tiny_gpt2,
            {"model_type": "bert"},
            "model_type must be one of gpt2, llama, mistral, qwen2",
        ),
        (tiny_gpt2, {"activation_function": "relu"}, "activation_function must be 'gelu_new'"),
        (tiny_gpt2, {"scale_attn_by_inverse_layer_idx": True}, "must be False, got True"),
        (tiny_gpt2, {"n_head": 3}, "heads must divide width, got 3 and 4"),
        (tiny_gpt2, {"n_embd": None}, "width must be a positive whole number, got None"),
        (tiny_llama, {"hidden_act": "gelu"}, "hidden_act must be 'silu', got 'gelu'"),
        (tiny_llama, {"attention_bias": True}, "attention_bias must be False, got True"),
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
    """What save wrote, read by transformers in float64; and what it computes of it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = MODELS[name]()
    params = parameters(model)
    huggingface.save(tmp_path / "saved", model, params)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", dtype=torch.float64, attn_implementation="eager"
    ).eval()
    # Theirs takes the label of a token from the place after it, and ignores -100.
    labels = np.where(LABELS == IGNORED, -100, LABELS)
    logits = theirs(torch.tensor(TOKENS)).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(labels).flatten())
    loss.backward()
    theirs_params = {n: p.grad for n, p in theirs.named_parameters()}

    # Llama's norms and rotary angles are computed in float32 there, whatever the dtype.
    kind = jnp.float64 if name.startswith("gpt2") else jnp.float32

    def assert_same(mine: jax.Array, truth: Any) -> None:
        assert_near(jnp.asarray(mine, kind), truth.detach().numpy(), reduced=REDUCED)

    x = Inputs(jnp.asarray(TOKENS))
    ours, dparams = quickly(jaxprop.value_and_grad(model.cost))(params, x, jnp.asarray(LABELS))
    assert_same(model.network.reference(params, x), logits)
    assert_same(ours, loss)
    huggingface.save(tmp_path / "gradients", model, dparams)
    written = tensors_of(tmp_path / "gradients")
    assert set(written) == set(theirs_params)
    for each, gradient in theirs_params.items():
        assert_same(written[each], gradient)


@pytest.mark.peers
@pytest.mark.slow
def test_what_transformers_saves_is_read(tmp_path: Path) -> None:
    """In shards and bfloat16, with its own config.json."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=7, hidden_size=8, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=12, rope_theta=777.0,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="1KB")
    model, params = huggingface.load(tmp_path)
    assert model.config.base == 777.0
    assert params["embedding"].dtype == jnp.bfloat16
    with torch.no_grad():
        truth = theirs.to(torch.float32)(torch.tensor(TOKENS)).logits.numpy()
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
