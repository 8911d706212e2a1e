"""Adapters alone, written and read: names and layout of PEFT, errors."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop.models import huggingface
from jaxprop.models.adapters import adapt, merge
from jaxprop.models.huggingface import CheckpointError, load_adapters, save_adapters
from jaxprop.models.inputs import Inputs
from jaxprop.models.language import LanguageModel
from jaxprop.models.projections import Adapted
from jaxprop.samples import normal
from tests.models.test_transformer import (
    REDUCED,
    TOKENS,
    each_model,
    parameters,
    tiny_gpt2,
    tiny_llama,
)
from tests.tolerances import assert_near

safetensors = pytest.importorskip("safetensors.numpy")


def adapted(make: Callable) -> tuple:
    model = make()
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), parameters(model))
    return model, params, adapt(params, "blocks/attention/*", 2, 6.0, jax.random.key(0))


@each_model
def test_adapters_are_read_as_they_were_written(make: Callable, tmp_path: Path) -> None:
    model, params, before = adapted(make)
    save_adapters(tmp_path / "a", model, before)
    after = load_adapters(tmp_path / "a", model, params)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, after, before))


def test_tensors_have_the_names_and_the_layout_of_peft(tmp_path: Path) -> None:
    for make, module, fan in (
        (tiny_llama, "model.layers.1.self_attn.q_proj", False),
        (tiny_gpt2, "transformer.h.1.attn.c_proj", True),
    ):
        model, _, params = adapted(make)
        folder = tmp_path / make.__name__
        save_adapters(folder, model, params)
        tensors = safetensors.load_file(folder / "adapter_model.safetensors")
        place = params["blocks"]["attention"]["w_o" if fan else "w_q"]
        a, b = (tensors[f"base_model.model.{module}.lora_{letter}.weight"] for letter in "AB")
        assert np.array_equal(a, place.a[1].T)
        assert np.array_equal(b, place.b[1].T)
        settings = json.loads((folder / "adapter_config.json").read_text())
        wanted = {"peft_type": "LORA", "r": 2, "lora_alpha": 6.0, "fan_in_fan_out": fan}
        assert settings.items() >= wanted.items()
        assert ".".join(module.split(".")[-2:]) in settings["target_modules"]


def in_transformers(model: LanguageModel, params: Any, folder: Path) -> Any:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    huggingface.save(folder, model, params)
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )


def logits_of(model: LanguageModel, params: Any) -> jax.Array:
    return model.network.reference(params, Inputs(jnp.asarray(TOKENS)))


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT asks transformers in an old way
@each_model
def test_logits_and_gradients_are_those_of_peft_which_reads_what_was_written(
    make: Callable, tmp_path: Path
) -> None:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    model, base, params = adapted(make)
    params = jax.tree.map(with_some_b, params, is_leaf=lambda leaf: isinstance(leaf, Adapted))
    save_adapters(tmp_path / "written", model, params)
    theirs = peft.PeftModel.from_pretrained(
        in_transformers(model, base, tmp_path / "base"), tmp_path / "written", is_trainable=True
    ).eval()
    logits = theirs(torch.tensor(TOKENS)).logits
    torch.sum(torch.sin(logits)).backward()

    def cost(params: Any) -> tuple[jax.Array, jax.Array]:
        logits = logits_of(model, params)
        return jnp.sum(jnp.sin(logits)), logits

    dparams, ours = jax.jit(jax.grad(cost, has_aux=True))(params)
    assert_near(ours, logits.detach().numpy(), reduced=REDUCED)
    save_adapters(tmp_path / "gradients", model, dparams)
    written = safetensors.load_file(tmp_path / "gradients/adapter_model.safetensors")
    truth = {
        name.replace(".default.", "."): p.grad.numpy()
        for name, p in theirs.named_parameters()
        if p.requires_grad
    }
    assert_near(written, truth, reduced=REDUCED)


def with_some_b(leaf: Any) -> Any:
    """New adapters change nothing: their b is 0."""
    return (
        replace(leaf, b=jnp.asarray(normal(5, *leaf.b.shape)))
        if isinstance(leaf, Adapted)
        else leaf
    )


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("make", "modules"),
    [(tiny_gpt2, ["attn.c_attn", "mlp.c_proj"]), (tiny_llama, ["q_proj", "v_proj", "down_proj"])],
)
def test_what_peft_wrote_is_read(make: Callable, modules: list[str], tmp_path: Path) -> None:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    model, base, _ = adapted(make)
    settings = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=modules,
        fan_in_fan_out=make is tiny_gpt2,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    theirs = peft.get_peft_model(in_transformers(model, base, tmp_path / "base"), settings).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    params = load_adapters(tmp_path / "theirs", model, base)
    truth = theirs(torch.tensor(TOKENS)).logits.detach().numpy()
    assert_near(logits_of(model, params), truth, reduced=REDUCED)
    assert not np.allclose(logits_of(model, base), truth, atol=0.1)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    model, bare, params = adapted(tiny_llama)
    with pytest.raises(CheckpointError, match=r"one rank and one scale, got \[\]"):
        save_adapters(tmp_path / "a", model, bare)
    mixed = adapt(params, "*/w_up", 1, 1.0, jax.random.key(0))
    with pytest.raises(CheckpointError, match=r"got \[\(1, 1.0\), \(2, 3.0\)\]"):
        save_adapters(tmp_path / "a", model, mixed)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="needs a new or an empty folder"):
        save_adapters(tmp_path, model, params)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    model, bare, params = adapted(tiny_llama)
    with pytest.raises(CheckpointError, match="must have adapter_config"):
        load_adapters(tmp_path, model, bare)
    save_adapters(tmp_path / "a", model, params)
    other = tiny_gpt2()
    with pytest.raises(CheckpointError, match="belongs to no matrix of Gpt2Config"):
        load_adapters(tmp_path / "a", other, merge(adapted(tiny_gpt2)[1]))
    settings = json.loads((tmp_path / "a/adapter_config.json").read_text())
    (tmp_path / "a/adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
    with pytest.raises(CheckpointError, match="use_dora must be left out, got True"):
        load_adapters(tmp_path / "a", model, bare)
    (tmp_path / "a/adapter_config.json").write_text(json.dumps(settings))
    tensors = safetensors.load_file(tmp_path / "a/adapter_model.safetensors")
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    kept = {key: value for key, value in tensors.items() if key != name}
    safetensors.save_file(kept, tmp_path / "a/adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=f"the tensor {name} is missing"):
        load_adapters(tmp_path / "a", model, bare)
    narrow = {key: value[:, :1] if "lora_B" in key else value for key, value in tensors.items()}
    safetensors.save_file(narrow, tmp_path / "a/adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"must fit a matrix of \(4, 2\)"):
        load_adapters(tmp_path / "a", model, bare)
