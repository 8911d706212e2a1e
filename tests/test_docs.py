"""The README's examples run as they stand, and its commands are the ones CI runs."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_examples_run_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict = {}
    for example in EXAMPLES:
        exec(compile(example, "README.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert len(EXAMPLES) >= 2
    assert "dx = g * tanh(x)" in printed
    assert "nan" in printed
    assert "g after f'" in printed


def test_commands_make_their_own_environment() -> None:
    commands = re.findall(r"^    (python3 -m venv .*)$", README, re.MULTILINE)
    assert [command.split()[-1] for command in commands] == ["scripts/train.py", "pytest"]
    assert all("pip install jaxprop" not in command for command in commands)


def test_every_file_that_the_readme_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    root = Path(__file__).parent.parent
    assert [link for link in links if not (root / link).exists()] == []
