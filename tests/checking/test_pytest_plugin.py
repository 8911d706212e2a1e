"""The pytest plugin: ids, choosing with -k, what a wrong rule's failure says, and its cost."""

import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxprop
from jaxprop.checking import pytest_plugin
from jaxprop.checking.drawing import arguments
from jaxprop.checking.pytest_plugin import vjp_tests
from jaxprop.checking.report import Finding, Report
from tests.checking import theirs

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[2]
IMPORTS = """
from jaxprop.checking.drawing import arguments
from jaxprop.checking.pytest_plugin import vjp_tests
from tests.checking.theirs import *
"""


def run(pytester: pytest.Pytester, text: str, *options: str) -> pytest.RunResult:
    """The outcome of a test file of two lines or so, in this process."""
    pytester.makeini("[pytest]\naddopts = --strict-markers\nfilterwarnings = error")
    pytester.makepyfile(test_theirs=IMPORTS + text)
    return pytester.runpytest_inprocess("-p", "jaxprop_pytest", "-p", "no:xdist", *options)


def ids(pytester: pytest.Pytester, text: str, *options: str) -> list[str]:
    """The ids of the tests that are collected."""
    found = run(pytester, text, "--collect-only", "-q", *options)
    return [
        line.partition("[")[2].removesuffix("]") for line in found.outlines if "test_vjps[" in line
    ]


def test_there_is_a_test_for_each_function_check_dtype_and_shape(
    pytester: pytest.Pytester,
) -> None:
    text = (
        "test_vjps = vjp_tests([(sine, vector)], dtypes=('float32', 'bfloat16'), "
        "shapes=[vector_of_one], edges={'at zero': ready})"
    )
    assert ids(pytester, text) == [
        "sine-contract",
        "sine-contract-float32",
        "sine-contract-bfloat16",
        "sine-algebra",
        "sine-linearity",
        "sine-numerics-float32",
        "sine-numerics-bfloat16",
        "sine-edges",
        "sine-edges-float32",
        "sine-edges-at_zero",
        "sine-shapes",
        "sine-shapes-vector_of_one",
        "sine-shapes-vector_of_one-float32",
        "sine-transforms",
        "sine-purity",
        "sine-second_order",
        "sine-residuals",
    ]


def test_a_rule_has_tests_for_its_cases_and_for_each_setting_of_its_options(
    pytester: pytest.Pytester,
) -> None:
    text = "test_vjps = vjp_tests(rules, checks=['algebra', 'shapes', 'edges'], dtypes=['float32'])"
    assert ids(pytester, text) == [
        "cube-algebra",
        "cube-shapes",
        "cube-shapes-batch_of_one",
        "cube-shapes-batch_of_one-float32",
        "cube-edges",
        "cube-edges-float32",
        "cube-edges-zeros",
        "cube-scale=2.0-algebra",
        "cube-scale=2.0-shapes",
        "cube-scale=2.0-edges",
        "cube-scale=2.0-edges-float32",
    ]


def test_rules_are_collected_without_computing_anything() -> None:
    """No array is made: the backend has not started, so devices can still be asked for."""
    text = (
        "import jax, jaxprop\n"
        "from jaxprop.checking.pytest_plugin import vjp_tests\n"
        "test_vjps = vjp_tests([jaxprop.linear, jaxprop.softmax])\n"
        "jax.config.update('jax_num_cpu_devices', 3)  # raises where a backend has started\n"
        "print(test_vjps.pytestmark[0].args[1][0].id)"
    )
    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "linear-contract\n"


def test_a_right_function_passes_and_what_cannot_be_checked_is_skipped_with_the_reason(
    pytester: pytest.Pytester,
) -> None:
    text = (
        "test_vjps = vjp_tests([(sine, vector)], dtypes=['float32'], order=1, "
        "checks=['contract', 'algebra', 'second order'])"
    )
    done = run(pytester, text, "-rs")
    done.assert_outcomes(passed=3, skipped=1)
    done.stdout.fnmatch_lines(["SKIPPED*: order=1 was asked for"])


def test_a_wrong_function_fails_the_tests_of_what_is_wrong_with_the_findings_as_text(
    pytester: pytest.Pytester,
) -> None:
    text = (
        "test_vjps = vjp_tests([(coarse, vector), (sine, vector)], "
        "checks=['algebra', 'linearity', 'numerics'], dtypes=['float32', 'bfloat16'])"
    )
    done = run(pytester, text, "-rf")
    done.assert_outcomes(passed=7, failed=1)
    done.stdout.fnmatch_lines(
        [
            "*_ test_vjps?coarse-numerics-bfloat16? _*",
            "FAIL  numerics, bfloat16: x",
            "      at *: got *, expected *, ratio 0.5*",
            "      looks like: *a constant ratio of 1/2*",
            "coarse: 1 of 2 outcomes, in * s with seed 0",
            "FAILED test_theirs.py::test_vjps?coarse-numerics-bfloat16? - Failed: FAIL  n*",
        ]
    )
    assert "pytest_plugin" not in done.stdout.str()  # nothing of how it is done


def test_a_shape_that_is_wrong_fails_under_its_own_name(pytester: pytest.Pytester) -> None:
    text = (
        "test_vjps = vjp_tests([(batch_of_one_wrong, vector)], checks=['algebra', 'shapes'], "
        "dtypes=['float32'], shapes={'one': vector_of_one, 'two': ready})"
    )
    done = run(pytester, text, "-rf", "-k", "algebra or one or two")
    done.stdout.fnmatch_lines(
        [
            "FAILED test_theirs.py::test_vjps?batch_of_one_wrong-shapes-one?*",
            "FAILED test_theirs.py::test_vjps?batch_of_one_wrong-shapes-one-float32?*",
        ]
    )
    assert "wrong-algebra] -" not in done.stdout.str()
    assert "wrong-shapes-two] -" not in done.stdout.str()


def test_a_rule_that_is_wrong_for_one_option_fails_under_that_option(
    pytester: pytest.Pytester,
) -> None:
    text = "test_vjps = vjp_tests({'cubed': cube_wrong_when_scaled}, checks=['algebra'])"
    done = run(pytester, text, "-rfp")
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines(
        [
            "FAILED test_theirs.py::test_vjps?cubed-scale=2.0-algebra?*",
            "PASSED test_theirs.py::test_vjps?cubed-algebra?",
        ]
    )


def test_only_what_the_selected_tests_need_is_checked_and_only_once(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def check(f: object, *args: object, **options: object) -> Report:
        asked.append((f, options["checks"], options["seed"]))
        return Report("f", 0, (Finding("algebra", "g 0", "PASS", "x"),))

    monkeypatch.setattr(pytest_plugin, "check", check)
    text = "test_vjps = vjp_tests([(sine, vector), (doubled, vector)], seed=4)"
    run(pytester, text, "-k", "sine and (algebra or transforms or numerics)")
    assert asked == [(theirs.sine, ["algebra", "numerics", "transforms", "meshes"], 4)]
    run(pytester, text, "-k", "purity", "--vjp-seed", "9")
    assert [seed for _, _, seed in asked[1:]] == [9, 9]


def test_a_doubt_is_a_warning(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(*args: object, **options: object) -> Report:
        return Report("f", 0, (Finding("contract", "by keyword", "WARN", message="raises"),))

    monkeypatch.setattr(pytest_plugin, "check", check)
    text = "test_vjps = vjp_tests([(sine, vector)], checks=['contract'], dtypes=[])"
    lenient = ["-W", "default::jaxprop.checking.pytest_plugin.VjpWarning"]
    run(pytester, text, *lenient).assert_outcomes(passed=1, warnings=1)
    run(pytester, text).assert_outcomes(failed=1)


@pytest.mark.slow
def test_drawn_shapes_find_a_batch_of_one_and_make_the_failure_small(
    pytester: pytest.Pytester,
) -> None:
    text = (
        "test_vjps = vjp_tests([(batch_of_one_wrong, vector)], checks=['algebra'], "
        "dtypes=[], draw=arguments(('B',), sizes=(1, 3)), examples=6)"
    )
    done = run(pytester, text, "-rf")
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines(
        [
            "*test_vjps?batch_of_one_wrong-drawn_shapes?*",
            "FAIL  algebra, g 0: x",
            "arguments of shapes (1,)",
        ]
    )
    assert "During handling" not in done.stdout.str()


def test_drawn_shapes_pass_where_the_function_is_right(pytester: pytest.Pytester) -> None:
    text = (
        "test_vjps = vjp_tests([(affine, vector)], checks=[], dtypes=[], "
        "draw=arguments(('B', 3), (3, 'N'), sizes=(1, 3)), examples=2)"
    )
    run(pytester, text).assert_outcomes(passed=1)


def test_a_template_may_be_a_tree_and_equal_names_have_equal_lengths() -> None:
    seen = []

    def look(params: dict, x: jax.Array) -> None:
        seen.append((params["w"].shape, params["scale"].shape, x.shape))

    import hypothesis

    template = arguments({"w": ("D", 2), "scale": ()}, ("B", "D"), sizes=(1, 4))
    settings = hypothesis.settings(max_examples=5, database=None, derandomize=True)
    settings(hypothesis.given(template)(lambda args: look(*args)))()
    assert len(set(seen)) > 1
    assert all(w == (x[1], 2) and scale == () for w, scale, x in seen)


def test_a_template_without_a_named_axis_is_refused() -> None:
    with pytest.raises(ValueError, match="some axis must have a name"):
        arguments((3, 4))


def test_every_outcome_of_a_report_belongs_to_one_test() -> None:
    """Whatever a check reports, and whatever stops it, some selected test tells it."""
    tests = vjp_tests([(theirs.sine, theirs.vector)], shapes=[theirs.vector_of_one])
    parts = [param.values[0] for param in tests.pytestmark[0].args[1]]
    function, keys = parts[0].function, [part.key for part in parts]
    filed = {
        ("contract", "as given"): ("contract", "", ""),
        ("contract", "bfloat16"): ("contract", "", "bfloat16"),
        ("contract", "x bfloat16, the others float32"): ("contract", "", ""),
        ("meshes", ""): ("transforms", "", ""),
        ("finite differences", "g 0"): ("algebra", "", ""),
        ("numerics", "float16"): ("numerics", "", "float16"),
        ("numerics", ""): ("numerics", "", "float32"),
        ("edges", "zeros in x, float32"): ("edges", "", "float32"),
        ("edges", "zeros in every argument"): ("edges", "", ""),
        ("shapes", "given shapes 0, float32"): ("shapes", "vector_of_one", "float32"),
        ("shapes", "given shapes 0"): ("shapes", "vector_of_one", ""),
        ("shapes", "an extra leading axis"): ("shapes", "", ""),
        ("a check of the future", ""): ("contract", "", ""),
    }
    for (check, transform), key in filed.items():
        outcome = Finding(check, transform, "FAIL")
        assert pytest_plugin._filed(outcome, function, keys) == key


@pytest.mark.slow
def test_a_report_of_everything_leaves_no_test_without_outcomes() -> None:
    """So the places and dtypes that tests are named after are those that `check` reports."""
    tests = vjp_tests(
        [(theirs.sine, theirs.vector)], shapes=[theirs.vector_of_one], edges=[theirs.ready]
    )
    parts = [param.values[0] for param in tests.pytestmark[0].args[1]]
    function, keys = parts[0].function, [part.key for part in parts]
    report = jaxprop.check(
        theirs.sine, *theirs.vector(), shapes=[theirs.vector_of_one()], edges=[theirs.ready]
    )
    told = {pytest_plugin._filed(outcome, function, keys) for outcome in report.outcomes}
    assert told == set(keys)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: vjp_tests([theirs.sine]), TypeError, "must be a Rule with cases or a pair"),
        (lambda: vjp_tests([theirs.Caseless.rule]), TypeError, "cube has no cases"),
        (lambda: vjp_tests([theirs.cube] * 2), ValueError, "got 'cube' twice"),
        (lambda: vjp_tests([theirs.cube], checks=["algbra"]), ValueError, "got 'algbra'"),
    ],
)
def test_bad_input_is_refused_when_the_tests_are_made(
    make: object, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        make()


def test_arguments_that_are_no_tuple_are_refused_when_the_test_runs(
    pytester: pytest.Pytester,
) -> None:
    done = run(pytester, "test_vjps = vjp_tests([(sine, lambda: bare)], checks=['algebra'])")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*vjp_tests: arguments must be a tuple, got ArrayImpl*"])


def test_cases_that_look_into_their_arrays_are_made_for_real() -> None:
    def cases() -> list[jaxprop.Case]:
        x = jnp.ones(3)
        return [jaxprop.Case(f"sum {float(x.sum()):g}", (x,)), jaxprop.Case("again", (x,))]

    rule = jaxprop.Rule(theirs.cube_reference, theirs._cube_forward, theirs._cube_backward, cases)
    assert [case.name for case in pytest_plugin._traced_cases(rule)] == ["sum 3", "again"]


def test_pytest_finds_the_plugin_by_its_entry_point(tmp_path: Path) -> None:
    """As an installation writes it, from what pyproject.toml says."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    ((name, module),) = project["project"]["entry-points"]["pytest11"].items()
    installed = tmp_path / "installed-0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: installed\nVersion: 0\n")
    (installed / "entry_points.txt").write_text(f"[pytest11]\n{name} = {module}\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--help"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--vjp-seed" in done.stdout


def test_the_entry_point_is_a_module_that_does_not_bring_jax() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (name,) = project["project"]["entry-points"]["pytest11"].values()
    assert name in project["tool"]["setuptools"]["py-modules"]
    assert hasattr(import_module(name), "pytest_addoption")
    text = f"import sys, {name}; print('jax' in sys.modules, 'jaxprop' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False False\n"
