"""The README and the docs: examples run as they stand, commands are CI's, links lead somewhere."""

import re
from pathlib import Path

import pytest

from jaxprop.verification import verify
from tests.tolerances import assert_near, tolerance

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = (ROOT / "README.md").read_text()


def examples(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def run(text: str, name: str) -> dict:
    """What the examples of a page define, run in order."""
    namespace: dict = {"__name__": name}
    for example in examples(text):
        exec(compile(example, name, "exec"), namespace)
    return namespace


@pytest.mark.slow
def test_the_readmes_examples_run_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    run(README, "README.md")
    printed = capsys.readouterr().out
    assert len(examples(README)) >= 2
    assert "dx = g * tanh(x)" in printed
    assert "nan" in printed
    assert "g after f'" in printed


@pytest.mark.slow
def test_the_transformers_chapter_runs_and_its_gradients_are_jaxs() -> None:
    found = run((ROOT / "docs" / "transformer.md").read_text(), "transformer")
    assert_near(found["dparams"], found["plain"], reduced=64)


@pytest.mark.slow
def test_the_convnets_chapter_runs_and_its_gradients_are_jaxs() -> None:
    found = run((ROOT / "docs" / "convnets.md").read_text(), "convnets")
    assert_near(found["dparams"], found["plain"], reduced=64)


@pytest.mark.slow
def test_the_recurrent_chapter_runs_and_its_gradients_are_jaxs() -> None:
    found = run((ROOT / "docs" / "recurrent.md").read_text(), "recurrent")
    assert_near(found["dparams"], found["plain"], reduced=64)
    whole = found["model"].network(found["params"], found["Inputs"](found["tokens"]))
    assert_near(found["rest"], whole[:, 4:], reduced=64)


@pytest.mark.slow
def test_the_page_on_fine_tuning_runs_and_trains_what_it_says() -> None:
    found = run((ROOT / "docs" / "fine-tuning.md").read_text(), "fine-tuning")
    trained = found["dparams"]["blocks"]["attention"]
    assert not trained["w_o"].w.any()
    assert trained["w_o"].b[2].any()
    assert found["plain"].keys() == found["params"].keys()


def test_commands_make_their_own_environment() -> None:
    commands = re.findall(r"^    (python3 -m venv .*)$", README, re.MULTILINE)
    assert [command.split()[-1] for command in commands] == ["scripts/train.py", "pytest"]
    assert all("pip install jaxprop" not in command for command in commands)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_links_to_exists(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_rule_of_the_guide_is_one() -> None:
    log_cosh = run((ROOT / "docs" / "adding-a-rule.md").read_text(), "guide")["log_cosh"]
    ordinary = [case for case in log_cosh.cases() if not case.edge]
    assert ordinary
    for case in ordinary:
        assert verify(log_cosh, case, tolerance("float64")) == []
