"""`scripts/check_vjps.py`: its table, its files, and what it says of bad input."""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from jaxprop.checking import command, conformance
from jaxprop.checking.command import main

ROOT = Path(__file__).parents[2]
THEIRS = "tests.checking.theirs"
QUICK = ["--level", "quick"]


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that the command leaves on stderr."""
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("check_vjps: ")
    assert said.err.count("\n") == 1
    return said.err


def test_a_right_rule_passes_and_everything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "out.json", tmp_path / "page.md"
    arguments = ["tan*", *QUICK, "--seed", "3", "--json", str(out), "--markdown", str(page)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].split()[:2] == ["tanh", "10"]
    assert printed[-1].endswith("PASS")
    found = json.loads(out.read_text())
    assert found["complete"]
    (row,) = found["rows"]
    assert row["verdict"] == "PASS"
    assert row["report"]["seed"] == 3
    assert row["ulps"]["float32"]["custom"] < 32
    assert row["residual_bytes"]["custom"] == 0
    assert row["transforms"]["passed"] == row["transforms"]["run"] > 0
    assert "scripts/check_vjps.py 'tan*' --level quick" in page.read_text()
    assert "| tanh | 10 |" in page.read_text()


def test_a_wrong_function_fails_the_command_and_its_findings_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    name = f"{THEIRS}:doubled@{THEIRS}:vector"
    assert main([name, *QUICK, "--markdown", str(page)]) == 1
    said = capsys.readouterr().out
    assert f"FAIL  {THEIRS}:doubled" in said
    assert "FAIL  algebra, g 0: x" in said
    assert "a constant ratio of 1/2" in said
    assert "a constant ratio of 1/2" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["relo"], "a name must match one of linear "),
        ([f"{THEIRS}:sine"], f"give {THEIRS}:sine@package.module:make_args"),
        ([f"{THEIRS}:number"], "must be callable, got int"),
        ([f"{THEIRS}:sin"], f"{THEIRS} has no 'sin'; the nearest it has: sine"),
        ([f"{THEIRS}:Caseless.wrong"], f"{THEIRS} has no 'Caseless.wrong'"),
        ([f"{THEIRS}:Caseless.rule"], "needs arguments to be checked at"),
        ([f"{THEIRS}:sine@"], "a name with a colon must be package.module:function"),
        ([":sine"], "a name with a colon must be package.module:function"),
        ([f"{THEIRS}:sine@{THEIRS}:raising"], "raising() raises RuntimeError: no such file"),
        ([f"{THEIRS}:sine@{THEIRS}:sine"], "sine() raises TypeError"),
        ([f"{THEIRS}:sine@{THEIRS}:bare"], "must give a tuple of arguments or a list"),
        ([f"{THEIRS}:sine@{THEIRS}:nothing"], "got a list of nothing"),
        (["no.such.module:f"], "there is no module 'no'"),
        (["relu", "tanh", "--reference", f"{THEIRS}:sine"], "--reference must go with one"),
        (["relu", "--reference", f"{THEIRS}:number"], f"{THEIRS}:number must be callable, got int"),
        (["relu", "--reference", f"{THEIRS}:sin"], f"{THEIRS} has no 'sin'"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--json", "nowhere/out.json"], "--json must be a file in a folder that exists"),
        (["--markdown", "."], "--markdown must be a file in a folder that exists, got ."),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in failure(capsys, *arguments)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1 / 0", "it raises ZeroDivisionError: division by zero"),
        ("f = (", "it raises SyntaxError"),
        ("raise SystemExit(0)", "it raises SystemExit: 0"),
        ("import no_such_thing", "there is no module 'no_such_thing'"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    says: str,
) -> None:
    (tmp_path / "broken_module.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert says in failure(capsys, "broken_module:f")


@pytest.mark.slow
def test_a_function_is_held_against_the_reference_that_is_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = [f"{THEIRS}:sine@{THEIRS}:vector", *QUICK, "--reference"]
    assert main([*named, f"{THEIRS}:sine"]) == 0
    assert main([*named, f"{THEIRS}:cube"]) == 1
    assert "FAIL  algebra, g 0: x" in capsys.readouterr().out


def test_the_current_folder_is_looked_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "module_here.py").write_text(f"from {THEIRS} import sine, vector\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [ROOT.as_posix(), *sys.path])
    assert main(["module_here:sine@module_here:vector", "--list"]) == 0
    assert capsys.readouterr().out == "module_here:sine\n"


@pytest.mark.parametrize("option", [["--dtype", "float8"], ["--lvel", "quick"], ["--seed", "x"]])
def test_a_wrong_option_is_complained_of_without_a_traceback(
    option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(option) == 1
    said = capsys.readouterr().err
    assert option[-1] in said or option[0] in said
    assert "Traceback" not in said


def test_a_missing_extra_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jaxprop.checking.options", None)
    monkeypatch.setitem(sys.modules, "tyro", None)
    with pytest.raises(ModuleNotFoundError, match=r"jaxprop\.checking\.options"):
        main(["relu"])  # not an extra: a broken installation is not a user's mistake
    monkeypatch.delitem(sys.modules, "jaxprop.checking.options")
    assert "needs tyro, which is not installed: pip install -e '.[train]'" in failure(capsys)


def test_lists_what_names_stand_for_each_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "softma*", "softmax", f"{THEIRS}:rules"]) == 0
    names = capsys.readouterr().out.split()
    assert names == ["softmax", "softmax_cross_entropy", "cube"]


def test_help_says_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for option in (
        "--dtype",
        "--reference",
        "--level",
        "--seed",
        "--json",
        "--markdown",
        "--list",
        "make_args",
    ):
        assert option in said


def test_ctrl_c_keeps_the_rows_that_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = conformance.conform

    def interrupted(target: object, *others: object) -> conformance.Row:
        if target.name == "tanh":
            raise KeyboardInterrupt
        return right(target, *others)

    monkeypatch.setattr(conformance, "conform", interrupted)
    out = tmp_path / "out.json"
    assert main(["identity", "tanh", "relu", *QUICK, "--json", str(out)]) == 130
    assert capsys.readouterr().err == "check_vjps: stopped after 1 of 3.\n"
    found = json.loads(out.read_text())
    assert [row["name"] for row in found["rows"]] == ["identity"]
    assert not found["complete"]


def test_jax_is_asked_for_devices_only_where_nobody_was_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    monkeypatch.setattr(command.jax.config, "update", lambda *args: asked.append(args))
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert main(["--list"]) == 0
    assert asked == [("jax_num_cpu_devices", 2)]
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    assert main(["--list"]) == 0
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "3")
    assert main(["--list"]) == 0
    assert len(asked) == 1


@pytest.mark.slow
def test_the_script_checks_on_several_devices_with_a_bar_on_a_terminal(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "check_vjps.py", "identity", "--json", out],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
        timeout=300,
        check=False,
    )
    drawn = os.read(screen, 1 << 16).decode()
    os.close(terminal)
    os.close(screen)
    assert done.returncode == 0, done.stdout
    assert "identity" in drawn
    assert "checking identity" not in drawn
    (row,) = json.loads(out.read_text())["rows"]
    transforms = {o["transform"]: o["verdict"] for o in row["report"]["outcomes"]}
    assert transforms["shard_map, check_vma=True, grad inside"] == "PASS"
    assert set(row["ulps"]) == {"float64", "float32", "bfloat16", "float16"}


@pytest.mark.slow
def test_the_script_stops_at_ctrl_c(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    # What a shell runs in the background ignores Ctrl-C, and so would a child of such tests.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    running = subprocess.Popen(
        [sys.executable, ROOT / "scripts" / "check_vjps.py", *QUICK, "--json", out],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    assert running.stdout is not None
    for printed in running.stdout:
        if printed.startswith("linear"):
            running.send_signal(signal.SIGINT)
            break
    _, said = running.communicate(timeout=120)
    assert running.returncode == 130
    assert "check_vjps: stopped after " in said
    assert "Traceback" not in said
    assert json.loads(out.read_text())["rows"][0]["name"] == "linear"


def test_the_example_of_the_guide_is_found_wrong_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guide = (ROOT / "docs" / "checking.md").read_text()
    (example,) = re.findall(r"^```python\n(import jax\n[^`]*def swish[^`]*)```", guide, re.M)
    (tmp_path / "my_rules.py").write_text(example)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_rules", raising=False)
    (command_line,) = re.findall(r"^\$ scripts/check_vjps\.py (my_rules.*)$", guide, re.M)
    assert main(shlex.split(command_line)) == 1
    said = capsys.readouterr().out
    assert "FAIL  algebra, g 0: beta\n" in said
    for line in said.splitlines():
        if line.startswith("FAIL  ") and "seed" not in line:
            assert line in guide
