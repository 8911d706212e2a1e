"""Adapters alone, written and read: names and layout of PEFT, errors."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop.models.adapters import adapt, merge
from jaxprop.models.huggingface import CheckpointError, load_adapters, save_adapters
from tests.models.test_transformer import each_model, parameters, tiny_gpt2, tiny_llama

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
