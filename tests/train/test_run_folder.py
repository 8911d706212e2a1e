"""The run folder: refused where it is not empty, resumed only with its own settings."""

from pathlib import Path

import pytest

from jaxprop.train.config import Config, Network
from jaxprop.train.errors import TrainingError
from jaxprop.train.run_folder import RunFolder, create, next_free, reopen, saved_config


def test_a_new_folder_holds_its_settings(tmp_path: Path) -> None:
    config = Config(Network(layers=(3,)))
    folder = create(tmp_path / "a" / "b", config)
    assert saved_config(folder.path, Config) == config
    assert reopen(folder.path, config) == folder


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    assert create(tmp_path, Config()).path == tmp_path


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_folder_with_something_in_it_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(TrainingError, match="must be a new or an empty folder"):
        create(tmp_path if what == "folder" else path, Config())
    assert path.read_text() == "mine"


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    create(tmp_path, Config())
    with pytest.raises(TrainingError, match="--layers: saved 64 64, now 8"):
        reopen(tmp_path, Config(Network(layers=(8,))))


def test_there_must_be_a_run_to_resume(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"got no .*config\.json"):
        saved_config(tmp_path, Config)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(TrainingError, match="must be JSON"):
        saved_config(tmp_path, Config)


def test_default_folders_are_numbered(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        path = next_free(tmp_path, "digits")
        assert path == tmp_path / f"digits-00{number}"
        path.mkdir()


def test_lines_past_a_checkpoint_are_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for epoch in range(4):
        folder.append({"epoch": epoch, "loss": 0.1 * epoch}, 1.0)
    folder.keep_epochs(1)
    assert folder.records() == [{"epoch": 0, "loss": 0.0}, {"epoch": 1, "loss": 0.1}]
    assert (tmp_path / "timings.jsonl").read_text().count("\n") == 2
    folder.keep_epochs(-1)
    assert folder.records() == []
