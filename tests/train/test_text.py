"""Training on text: what is read, what a step sees, a run, a run resumed, samples, errors."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop.models.language import matrices
from jaxprop.train.command import main
from jaxprop.train.config import Language, LanguageConfig, Optimisation
from jaxprop.train.corpus import Corpus, load_corpus, python_files
from jaxprop.train.errors import TrainingError
from jaxprop.train.language import LanguageExperiment, prepare_language
from jaxprop.train.sampling import main as sample

SMALL = ("--width", "8", "--depth", "1", "--length", "12", "--steps", "4")
QUICK = (*SMALL, "--epochs", "2", "--batch-size", "4", "--sample", "5")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("to be or not to be, that is the question:\n" * 40)
    return path


def experiment(text: str = "abcdefgh" * 40, **language: object) -> LanguageExperiment:
    data = np.frombuffer(text.encode(), np.uint8)
    settings = {"width": 8, "depth": 1, "heads": 2, "length": 12, "steps": 3, **language}
    config = LanguageConfig(Language(**settings), Optimisation(batch_size=4, epochs=2))
    return prepare_language(config, Corpus("test", data, data[:100]))


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    code = main(["text", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_standard_library_is_read() -> None:
    corpus = load_corpus("")
    assert len(corpus.train) > 5e6
    assert 0.01 < len(corpus.held_out) / len(corpus.train) < 0.2
    assert b"class OrderedDict(dict)" in bytes(corpus.train) + bytes(corpus.held_out)


def test_tests_tables_and_the_packages_of_others_are_no_source_of_the_library(
    tmp_path: Path,
) -> None:
    kept = ["a.py", "json/b.py", "unittest/testing.py"]
    left_out = ["test/c.py", "idlelib/idle_test/d.py", "pydoc_data/topics.py", "site-packages/e.py"]
    for name in (*kept, *left_out, "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1")
    found = {path.relative_to(tmp_path).as_posix() for path in python_files(tmp_path)}
    assert found == set(kept)


def test_a_folder_is_split_by_the_paths_of_its_files(tmp_path: Path) -> None:
    for k in range(60):
        (tmp_path / f"{k:02}.txt").write_text(f"file {k}\n\n")
    (tmp_path / "picture.bin").write_bytes(b"\0\1\2")
    (tmp_path / "empty.txt").write_text("")
    corpus = load_corpus(str(tmp_path))
    parts = [bytes(part).decode().split("\n")[:-1] for part in corpus[1:]]
    assert sorted(parts[0] + parts[1]) == sorted(f"file {k}" for k in range(60))
    assert 0 < len(parts[1]) < 12
    again = load_corpus(str(tmp_path))
    assert np.array_equal(corpus.train, again.train)
    assert np.array_equal(corpus.held_out, again.held_out)


def test_the_end_of_a_file_is_held_out(text: Path) -> None:
    corpus = load_corpus(str(text))
    content = text.read_bytes()
    assert bytes(corpus.train) + bytes(corpus.held_out) == content
    assert len(corpus.held_out) == len(content) // 10


def test_a_step_sees_the_bytes_that_follow_each_other() -> None:
    made = experiment()
    inputs, labels, key = made.batch(made.data, made.order(1)[:4])
    assert inputs.tokens.shape == labels.shape == (4, 12)
    assert np.array_equal(inputs.tokens[:, 1:], labels[:, :-1])
    assert set((labels - inputs.tokens).ravel().tolist()) == {1, -7}  # a, b, .. h, a
    assert key is None


def test_each_epoch_begins_its_sequences_elsewhere_and_the_seed_says_where() -> None:
    made, again = experiment(), experiment()
    assert made.order(1).tolist() == again.order(1).tolist() != made.order(2).tolist()
    assert made.order(1).shape == (12,)
    assert int(made.order(1).max()) <= 320 - 13


def test_dropout_is_on_in_training_alone() -> None:
    made = experiment(dropout=0.5)
    inputs, _, key = made.batch(made.data, made.order(1)[:4])
    _, _, other = made.batch(made.data, made.order(1)[4:8])
    assert float(inputs.dropout) == 0.5
    assert not jnp.array_equal(jax.random.key_data(key), jax.random.key_data(other))
    assert made.held[0].dropout is None


def test_weight_decay_is_on_matrices_alone() -> None:
    params = {
        "embedding": jnp.ones(2),
        "blocks": {"attention": {"norm": {"gamma": 1.0, "beta": 1.0}, "w_o": 1.0, "b_o": 1.0}},
        "norm": jnp.ones(2),
    }
    assert matrices(params) == {
        "embedding": True,
        "blocks": {
            "attention": {"norm": {"gamma": False, "beta": False}, "w_o": True, "b_o": False}
        },
        "norm": False,
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama", "lstm", "gru"])
def test_a_run_learns_saves_samples_and_checks_its_gradient(
    tmp_path: Path, text: Path, family: str, capsys: pytest.CaptureFixture
) -> None:
    code, said, _ = run(
        capsys, "--text", text, "--run", tmp_path / "run", "--family", family, *QUICK
    )
    assert code == 0
    records = [
        json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().split("\n")[:-1]
    ]
    losses = [r["held_out_loss"] for r in records]
    assert losses[2] < losses[1] < losses[0]
    assert records[2]["held_out_bits_per_byte"] == pytest.approx(losses[2] / np.log(2))
    assert records[0]["cross_check"]["error"] < 1e-4
    assert records[2]["cross_check"]["error"] < 1e-4
    assert "text.txt: 1,512 training and 168 held-out bytes" in said
    assert (tmp_path / "run/samples.txt").read_text().count("epoch ") == 2
    assert (tmp_path / "run/curves.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "lstm", "gru"])
def test_automatic_differentiation_trains_to_the_same_losses(
    tmp_path: Path, text: Path, family: str, capsys: pytest.CaptureFixture
) -> None:
    losses = []
    for name, flags in (("hand", ()), ("automatic", ("--automatic",))):
        arguments = ("--text", text, "--run", tmp_path / name, "--family", family, *QUICK, *flags)
        code, _, _ = run(capsys, *arguments)
        assert code == 0
        lines = (tmp_path / name / "metrics.jsonl").read_text().split("\n")[:-1]
        losses.append([json.loads(line)["held_out_loss"] for line in lines])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_a_run_that_is_resumed_ends_as_one_that_was_not(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture
) -> None:
    """The second epoch is cut off the folder, and made again."""
    arguments = ("--text", text, "--run", tmp_path / "run", *QUICK, "--save-every", "0")
    assert run(capsys, *arguments)[0] == 0
    metrics = (tmp_path / "run/metrics.jsonl").read_bytes()
    newest = max((tmp_path / "run/checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    for path in sorted(newest.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    newest.rmdir()
    assert run(capsys, "--run", tmp_path / "run", "--resume")[0] == 0
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == metrics


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "lstm"])
def test_a_run_writes_text_from_a_prompt(
    tmp_path: Path, text: Path, family: str, capsys: pytest.CaptureFixture
) -> None:
    run(capsys, "--text", text, "--run", tmp_path / "run", "--family", family, *QUICK)
    said = []
    for _ in range(2):
        arguments = ["--run", str(tmp_path / "run"), "--prompt", "to b", "--count", "6"]
        assert sample([*arguments, "--top-k", "3", "--top-p", "0.9", "--seed", "4"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert said[0].startswith("to b")
    assert len(said[0].encode()) >= len("to b") + 6


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--text", "nowhere"), "--text must be a file or a folder, got 'nowhere'"),
        (("--width", "9"), "heads must divide width, got 4 and 9"),
        (("--dropout", "1"), "the dropout rate must lie from 0 to below 1, got 1.0"),
        (("--family", "llama", "--dropout", "0.1"), "llama has no dropout, got 0.1"),
        (("--family", "lstm", "--heads", "2"), "lstm has no heads, got 2. Change --heads or"),
        (("--family", "gru", "--key-heads", "2"), "only llama has key heads, got 2."),
        (("--steps", "0"), "--steps must be at least 1, got 0"),
        (("--plant", "E1"), "--plant is for the dense network of the notes, got E1"),
        (("--length", "100000000"), "must be longer than a sequence"),
        (("--resume",), "--resume needs the folder of a run"),
    ],
)
def test_what_does_not_fit_is_one_line(
    arguments: tuple, says: str, capsys: pytest.CaptureFixture
) -> None:
    code, _, said = run(capsys, *arguments)
    assert code == 1
    assert said.startswith("train: ")
    assert says in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "sample: needs --run or --weights, one of the two, got neither."),
        (["--run", "a", "--weights", "b"], "one of the two, got both."),
        (["--run", "nowhere"], "--run must be the folder of a run of train.py text, got nowhere"),
        (["--run", "a", "--top-p", "0"], "--top-p must lie above 0, up to 1, got 0.0."),
        (["--run", "a", "--count", "0"], "--count must be at least 1, got 0."),
    ],
)
def test_a_sample_that_cannot_be_is_one_line(
    arguments: list, says: str, capsys: pytest.CaptureFixture
) -> None:
    assert sample(arguments) == 1
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_a_text_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"\xff\xfe\0")
    with pytest.raises(TrainingError, match="must be text in UTF-8"):
        load_corpus(str(tmp_path / "x.bin"))
    with pytest.raises(TrainingError, match="got 0 in"):
        load_corpus(str(tmp_path))
