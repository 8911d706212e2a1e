"""Fine-tuning: where a run starts, what is trained of it, what is kept, errors."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprop
from jaxprop.models import huggingface
from jaxprop.models.adapters import adapters
from jaxprop.models.llama import LlamaConfig, llama
from jaxprop.train.command import main
from jaxprop.train.config import Language, LanguageConfig, Optimisation
from jaxprop.train.corpus import Corpus
from jaxprop.train.language import LanguageExperiment, prepare_language
from jaxprop.train.optimisers import update
from jaxprop.train.sampling import main as sample
from jaxprop.train.trained import of_trained, trained_part
from jaxprop.train.tuning import Tuning

SHAPE = {"width": 8, "depth": 3, "heads": 2, "length": 12, "steps": 3}
TEXT = np.frombuffer(b"to be or not to be, that is the question:\n" * 20, np.uint8)
PARAMS = {
    "embedding": jnp.ones((5, 2)),
    "blocks": {"w_o": jnp.ones((3, 2, 2)), "norm": jnp.ones((3, 2))},
    "norm": jnp.ones(2),
}


def experiment(**tuning: Any) -> LanguageExperiment:
    optimisation = Optimisation(batch_size=4, epochs=1, optimiser="adamw", learning_rate=0.1)
    config = LanguageConfig(Language(**SHAPE), optimisation, Tuning(**tuning))
    return prepare_language(config, Corpus("test", TEXT, TEXT[:200]))


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    code = main(["text", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in leaves}


def test_what_is_trained_is_not_frozen_and_above_the_frozen_blocks() -> None:
    part = trained_part(PARAMS, ("embedding", "*/w_o"), 2)
    assert shapes(part) == {"blocks/norm": (1, 2), "norm": (2,)}
    assert shapes(trained_part(PARAMS, None, 0)) == shapes(PARAMS)


def test_the_optimiser_holds_and_decays_nothing_of_what_is_not_trained() -> None:
    """Weight decay would shrink frozen blocks, whose gradient is 0."""

    def part(tree: Any) -> Any:
        return trained_part(tree, "embedding", 2)

    plain = optax.adamw(0.1, weight_decay=0.5)
    optimiser = of_trained(plain, part)
    state = optimiser.init(PARAMS)
    held = [leaf.size for leaf in jax.tree.leaves(state)]
    assert sum(held) == 1 + 2 * sum(leaf.size for leaf in jax.tree.leaves(part(PARAMS)))
    gradients = jax.tree.map(jnp.ones_like, PARAMS)
    params, _ = update(optimiser, gradients, state, PARAMS)
    wanted, _ = update(plain, part(gradients), plain.init(part(PARAMS)), part(PARAMS))
    assert np.all(params["embedding"] == 1)
    assert np.all(params["blocks"]["w_o"][:2] == 1)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, part(params), wanted))
    assert not np.any(params["blocks"]["norm"][2] == 1)


@pytest.mark.parametrize(
    ("tuning", "trained"),
    [
        ({"freeze": ("*/w_*", "embedding")}, {"positions", "norm/gamma"}),
        ({"freeze_blocks": 2}, {"norm/gamma", "blocks/attention/w_o"}),
        ({"adapter_rank": 1}, {"blocks/attention/w_o/a", "blocks/attention/w_qkv/b"}),
    ],
)
def test_settings_say_what_is_trained(tuning: dict, trained: set) -> None:
    made = experiment(**tuning)
    found = shapes(made.trained_shapes)
    assert trained < set(found)
    assert "embedding" not in found
    assert found.get("blocks/attention/w_o", (1,))[0] == 1
    assert (len(found) == 4) == ("adapter_rank" in tuning)


@pytest.mark.slow
@pytest.mark.parametrize(
    "tuning",
    [{"freeze": ("*/w_qkv",), "freeze_blocks": 1}, {"adapter_rank": 2, "adapter_alpha": 3.0}],
)
def test_both_gradients_are_the_same_and_zero_for_what_is_not_trained(tuning: dict) -> None:
    made = experiment(**tuning)
    params = jax.tree.map(lambda leaf: leaf + 0.1, made.init())
    batch = made.batch(made.data, made.order(1)[:4])
    (J, by_hand), (truth, by_jax) = (
        jax.jit(gradient)(params, *batch) for gradient in (made.by_hand, made.by_jax)
    )
    assert float(J) == pytest.approx(float(truth), rel=1e-5)
    for got, wanted in zip(jax.tree.leaves(by_hand), jax.tree.leaves(by_jax), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)
    trained = sum(np.count_nonzero(leaf) for leaf in jax.tree.leaves(made.trained(by_hand)))
    assert trained == sum(np.count_nonzero(leaf) for leaf in jax.tree.leaves(by_hand)) > 0


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.tobytes() * 2)
    return path


QUICK = ("--steps", 3, "--epochs", 1, "--batch-size", 4, "--sample", 4)
SMALL = ("--width", 8, "--depth", 2, "--heads", 2, "--length", 12, *QUICK)


def params_of(folder: Path) -> Any:
    from jaxprop.train.run_folder import saved_config
    from jaxprop.train.starting import run_params, start_kept

    config = saved_config(folder, LanguageConfig)
    return run_params(folder, config, start_kept(folder, config))


@pytest.mark.slow
def test_a_run_starts_from_another_is_resumed_and_writes(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture
) -> None:
    """First adapters, then a run from that one, whose adapters are merged, with a frozen block."""
    base, tuned, again = (tmp_path / name for name in ("base", "tuned", "again"))
    assert run(capsys, "--text", text, "--run", base, *SMALL)[0] == 0
    arguments = ("--text", text, "--run", tuned, "--start", base, "--adapter-rank", 2, *QUICK)
    code, said, _ = run(capsys, *arguments)
    assert code == 0
    assert "4,096 parameters, of which 192 are trained, float32" in said
    before, after = params_of(base), params_of(tuned)
    place = after["blocks"]["attention"]["w_qkv"]
    assert np.array_equal(place.w, before["blocks"]["attention"]["w_qkv"])
    assert np.any(place.b)
    assert np.array_equal(after["embedding"], before["embedding"])
    assert run(capsys, "--run", tuned, "--resume")[0] == 0
    assert sample(["--run", str(tuned), "--count", "3"]) == 0
    arguments = ("--text", text, "--run", again, "--start", tuned, "--freeze-blocks", 1, *QUICK)
    assert run(capsys, *arguments)[0] == 0
    last = params_of(again)
    assert not adapters(last)
    merged = place.w + place.scale * place.a @ place.b
    got = last["blocks"]["attention"]["w_qkv"]
    np.testing.assert_allclose(got[0], merged[0], atol=1e-6)
    assert not np.allclose(got[1], merged[1], atol=1e-6)
    records = (again / "metrics.jsonl").read_text().splitlines()
    assert json.loads(records[-1])["cross_check"]["error"] < 1e-4


def weights(folder: Path, text: str) -> Path:
    """A tiny Llama of others, with a tokenizer of words."""
    tokenizers = pytest.importorskip("tokenizers")
    words = sorted({*text.split(), "[UNK]"})
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    model = llama(LlamaConfig(len(words) + 1, width=8, depth=2, heads=2, hidden=12, key_heads=1))
    huggingface.save(folder, model, model.init(jax.random.key(0)))
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.slow
def test_a_run_starts_from_the_weights_and_the_tokens_of_others(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture
) -> None:
    """It keeps what it needs of them: they may be gone when it is resumed."""
    folder, tuned = weights(tmp_path / "theirs", text.read_text()), tmp_path / "tuned"
    arguments = ("--text", text, "--run", tuned, "--start", folder, "--adapter-rank", 1)
    code, said, _ = run(capsys, *arguments, "--length", 12, *QUICK)
    assert code == 0
    assert "network: llama, 2 blocks of width 8" in said
    assert "J = cross-entropy of the next token" in said
    record = json.loads((tuned / "metrics.jsonl").read_text().splitlines()[0])
    held_out = text.read_text()[-len(text.read_text()) // 10 :]
    ratio = len(held_out.split()) / len(held_out.encode())
    wanted = record["held_out_loss"] / np.log(2) * ratio
    assert record["held_out_bits_per_byte"] == pytest.approx(wanted, rel=0.02)
    for path in folder.iterdir():
        path.unlink()
    assert run(capsys, "--run", tuned, "--resume")[0] == 0
    assert sample(["--run", str(tuned), "--prompt", "to be", "--count", "3"]) == 0
    words = capsys.readouterr().out.split()
    assert words[:2] == ["to", "be"]
    assert len(words) == 5


@pytest.mark.slow
def test_a_start_that_does_not_fit_is_one_line(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture
) -> None:
    folder, base = weights(tmp_path / "theirs", text.read_text()), tmp_path / "base"
    assert run(capsys, "--text", text, "--run", base, *SMALL)[0] == 0
    for arguments, says in (
        (("--start", base, "--width", 9), "--width must be that of the network in "),
        (("--start", base, "--length", 13), "the positions that are learned, 12, got 13."),
        (("--start", folder, "--depth", 3), ", 2, got 3. Leave it out."),
        (("--start", tmp_path / "nowhere"), "must be a folder with config.json"),
        (("--start", base, "--freeze", "embeding"), "got 'embeding', which selects none of ["),
        (("--start", base, "--freeze", "*"), "some parameter must be trained"),
        (("--start", base, "--freeze-blocks", 3), "repeat: frozen must be an integer from 0 to n"),
        (("--start", base, "--adapter-rank", 1, "--adapt", "norm/*"), "adapt: patterns must "),
    ):
        code, _, said = run(capsys, "--text", text, "--run", tmp_path / "run", *arguments)
        assert (code, said.count("\n")) == (1, 1), said
        assert said.startswith("train: ")
        assert says in said
        assert not (tmp_path / "run").exists()
    (folder / "model.safetensors").write_bytes(b"no tensors")
    code, _, said = run(capsys, "--text", text, "--run", tmp_path / "run", "--start", folder)
    assert code == 1
    assert "is no safetensors" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--freeze-blocks", -1), "--freeze-blocks must be at least 0, got -1."),
        (("--adapter-rank", -1), "--adapter-rank must be at least 0, got -1."),
        (("--adapter-alpha", 0), "--adapter-alpha must be finite and above 0, got 0.0."),
        (("--adapter-rank", 1, "--freeze", "*"), "trains nothing but adapters, got --freeze * too"),
        (("--context", 10), "no longer than the positions that are learned, 10, got 128."),
        (("--family", "llama", "--context", 200), "only gpt2 learns positions, got 200."),
    ],
)
def test_settings_that_do_not_fit_are_one_line(
    arguments: tuple, says: str, capsys: pytest.CaptureFixture
) -> None:
    code, _, said = run(capsys, *arguments)
    assert (code, said.count("\n")) == (1, 1)
    assert says in said


def test_frozen_parameters_are_named_as_penalties_name_them() -> None:
    made = experiment(freeze=("blocks/*/norm*",))
    assert made.frozen == ("blocks/*/norm*",)
    assert isinstance(jaxprop.freeze(made.model.cost, made.frozen), jaxprop.Rule)
