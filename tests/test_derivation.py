"""Derivations that run: every rule's is right, and a slip in any line of it is found."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop
from jaxprop import Case, Rule
from jaxprop.derivation import Line, derivation
from jaxprop.verification import verify
from jaxprop.vocabulary import names
from tests.rules.oracle import rule_cases
from tests.slips import (
    Slip,
    docstring,
    normal,
    one_of_each_kind,
    slips,
    with_docstring,
    with_line,
)
from tests.small_rules import statistics
from tests.subjects import STRAINING
from tests.tolerances import assert_near, tolerance

TOLERANCE = tolerance("float64", reduced=64)

# Edge cases at which the lines, evaluated as they stand, are as good as the code. At the others
# they overflow where the code does not (large, infinite, masked), are nan, reduce nothing
# (empty), or name a leaf that the case does not give. Every case that is no edge is used.
USABLE_EDGES = {"zeros", "ties", "no difference"}


def at_scope(rule: Rule) -> list[Case]:
    """The cases at which the derivation can be evaluated."""
    lines = derivation(rule)
    quantities = {line.name.removeprefix("d") for line in lines.backward}
    computed = {line.name for line in lines.forward}
    one_leaf = quantities - computed - {*rule.argument_names}  # of a tree: `given` must have it
    return [
        case
        for case in rule.cases()
        if not case.edge or (case.name in USABLE_EDGES and not (one_leaf and case.given is None))
    ]


def of_each_setting(rule: Rule) -> list[Case]:
    """The first of them for each setting of the options."""
    first: dict[str, Case] = {}
    for case in at_scope(rule):
        first.setdefault(f"{dict(case.options)} {case.edge}", case)
    return list(first.values())


def verified(rule: Rule, case: Case) -> list[str]:
    """The problems, integers and floating numbers mixing in the lines as they do on paper."""
    with jax.numpy_dtype_promotion("standard"):
        try:
            return verify(rule, case, TOLERANCE)
        except IndexError as error:  # the last test of this file
            return [str(error)]


LINES = [
    pytest.param(
        rule,
        line,
        id=f"{rule.name}-{line.label}",
        marks=() if rule is jaxprop.linear else pytest.mark.slow,
    )
    for rule in jaxprop.CATALOGUE
    for line in derivation(rule)
]


@pytest.mark.parametrize(("rule", "case"), rule_cases(of_each_setting, default=STRAINING))
def test_every_derivation_is_right(rule: Rule, case: Case) -> None:
    assert verified(rule, case) == []


@pytest.mark.parametrize("rule", jaxprop.CATALOGUE, ids=lambda rule: rule.name)
def test_every_rule_is_verified_at_an_ordinary_case_and_states_its_scope(rule: Rule) -> None:
    assert any(not case.edge for case in at_scope(rule))
    assert derivation(rule).scope


# Slips after which the derivation is still right, and why. No other slip may go unnoticed.
HARMLESS = {
    ("softmax", "F1"): (
        "y = e / sum(e): a factor that is the same along a row of e cancels, and so does a shift "
        "of x; B1 and B2 do not read how e was shifted",
        {
            "-exp(x - max(x))",
            "2 * exp(x - max(x))",
            "exp(x - max(x)) / 2",
            "exp(x + max(x))",
            "exp(x)",
        },
    ),
    ("kl_divergence", "B2"): (
        "a number in the place of rows: B4 cannot sum it along an axis and raises, so that the "
        "slip is found and B2 not named",
        {"g / rows(logits)"},
    ),
    ("orthogonality", "B2"): (
        "gram, and dgram with it, is symmetric",
        {"2 * (w @ dgram.T) - 4 * g * w"},
    ),
    ("attention", "F4"): (
        "p = e / sum(e): a positive factor of e cancels; B5 holds for any",
        {"2 * where(mask, exp(z), 0)", "where(mask, exp(z), 0) / 2"},
    ),
}


def unnoticed(rule: Rule, line: Line, planted: list[Slip]) -> set[str]:
    """The slips that `verify` reports at none of the rule's ordinary cases."""
    return {slip.expression for slip in planted if not noticed(rule, line, slip)}


def noticed(rule: Rule, line: Line, slip: Slip) -> bool:
    wrong = with_line(rule, line.label, slip.expression)
    cases = [case for case in at_scope(rule) if not case.edge]
    return any(reports(wrong, line, verified(wrong, case)) for case in cases)


def reports(rule: Rule, line: Line, problems: list[str]) -> bool:
    """Whether there is a problem; of a B line, one that names it.

    A slip that changes a quantity's shape may stop the evaluation at a line that reads it:
    then that line is the one named. One that drops the cotangent of an output hides the output,
    and then what the lines read is named.
    """
    if line.label.startswith("F"):
        return bool(problems)
    readers = [b for b in derivation(rule).backward if line.name in names(b.expression)]
    stops = [rf"line {reader.label}, .*cannot be evaluated" for reader in readers]
    patterns = [rf"\b{line.label}\b", *stops, "the B lines read the cotangents .* alone"]
    return any(re.search(pattern, problem) for pattern in patterns for problem in problems)


def harmless(rule: Rule, line: Line) -> set[str]:
    return HARMLESS.get((rule.name, line.label), ("", set()))[1]


OF_STRAINING = [line for line in LINES if line.values[0] in STRAINING]


@pytest.mark.parametrize(("rule", "line"), [line for line in LINES if line not in OF_STRAINING])
def test_a_slip_of_each_kind_in_any_line_is_found(rule: Rule, line: Line) -> None:
    """And where it is a B line, named."""
    planted = one_of_each_kind(slips(line))
    assert {"negated", "doubled", "halved"} <= {slip.kind for slip in planted}
    assert unnoticed(rule, line, planted) <= harmless(rule, line)


@pytest.mark.parametrize(("rule", "line"), OF_STRAINING)
def test_every_slip_in_any_line_is_found_but_for_the_harmless(rule: Rule, line: Line) -> None:
    assert unnoticed(rule, line, slips(line)) == harmless(rule, line)


@pytest.mark.parametrize("line", list(derivation(jaxprop.linear)), ids=lambda line: line.label)
def test_a_transpose_lost_or_added_is_found_where_every_matrix_is_square(line: Line) -> None:
    """There the shapes fit whatever the slip, and only the numbers tell."""
    rule, b = jaxprop.linear, jax.random.normal(jax.random.key(2), (4,))
    x, w = (jax.random.normal(jax.random.key(seed), (4, 4)) for seed in (0, 1))
    square = Case("square", (x, w, b))
    assert verified(rule, square) == []
    planted = [slip for slip in slips(line) if slip.kind == "transpose"]
    assert bool(planted) == ("@" in line.text)
    for slip in planted:
        wrong = with_line(rule, line.label, slip.expression)
        assert reports(wrong, line, verified(wrong, square)), slip


def test_a_derivation_written_out_again_says_the_same() -> None:
    """So that what the tests above plant is the slip alone."""
    for rule in jaxprop.CATALOGUE:
        lines = derivation(rule)
        again = derivation(with_docstring(rule, docstring(lines, {})))
        assert [(a.label, a.name, a.follows) for a in again] == [
            (b.label, b.name, b.follows) for b in lines
        ]
        assert [normal(a.text) for a in again] == [normal(b.text) for b in lines]


# What can be wrong with a docstring, on a rule that is small enough to read.

X = np.array([[0.5, -1.0, 2.0], [1.5, 0.25, -0.5]])
SCALE = np.array([2.0, 3.0, -1.0])


def scaled(text: str) -> Rule:
    """y = exp(x) * scale, under a docstring of the test's own."""

    def scaled_reference(x: jax.Array, scale: jax.Array) -> jax.Array:
        return jnp.exp(x) * scale

    scaled_reference.__doc__ = text
    return Rule(scaled_reference, scaled_forward, scaled_backward)


def scaled_forward(x: jax.Array, scale: jax.Array) -> tuple[jax.Array, tuple]:
    e = jnp.exp(x)
    return scale * e, (scale, e)


def scaled_backward(res: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    scale, e = res
    return g * scale * e, jnp.sum(g * e, axis=0)


RIGHT = """Scale an exponential.

    Scope      rows: x (B, C), scale (C,)
    Forward    e = exp(x)                                              (F1)
               y = e * scale                                           (F2)
    Backward   de = g * scale                                          (B1) from F2
               dx = de * e                                             (B2) from F1
               dscale = sum_rows(g * e)                                (B3) from F2

    Args:
        x: not a line (F3)
    """


def problems_of(text: str) -> list[str]:
    return verified(scaled(text), Case("the case", (X, SCALE)))


def test_a_right_derivation_has_no_problems() -> None:
    assert problems_of(RIGHT) == []


def test_a_problem_begins_with_the_rule_and_the_case() -> None:
    (problem,) = problems_of(RIGHT.replace("de * e ", "de + e "))
    assert problem == "scaled, the case: B2, dx = de + e, is not the gradient in x"


WRONG = {
    "labels that skip": (
        [("(F2)", "(F3)"), ("from F2", "from F3")],
        "labels must count up from F1, got F1, F3",
    ),
    "labels that start at 0": (
        [("(B1)", "(B0)")],
        "labels must count up from B1, got B0, B2, B3",
    ),
    "the last F line is another value": (
        [("y = e * scale", "y = e / scale")],
        "the F lines give y another value than the reference",
    ),
    "a from that cites too little": (
        [("(B2) from F1", "(B2) from F2")],
        "B2 must cite F1, the lines that read x, and none but F1, F2; it cites F2",
    ),
    "no from": (
        [("(B2) from F1", "(B2)")],
        "B2 must cite F1, the lines that read x, and none but F1, F2; it cites none",
    ),
    "a from that cites what does not read it": (
        [("(B3) from F2", "(B3) from F1, F2")],
        "B3 must cite F2, the lines that read scale, and none but F2; it cites F1, F2",
    ),
    "a B line for no quantity": (
        [("dscale = ", "dz = ")],
        "B3 assigns dz, which is no d<name> of a quantity here",
    ),
    "a B line without its d": (
        [("dscale = ", "scale = ")],
        "B3 assigns scale, which is no d<name> of a quantity here",
    ),
    "an argument without a B line": (
        [("dscale = ", "dz = ")],
        "no line states dscale",
    ),
    "a B line of the wrong shape": (
        [("sum_rows(g * e)", "g * e")],
        "B3, dscale = g * e, is not the gradient in scale",
    ),
    "an intermediate B line that is wrong": (
        [("de = g * scale", "de = g"), ("dx = de * e", "dx = g * scale * e")],
        "B1, de = g, is not the gradient in e",
    ),
    "an unknown word": (
        [("exp(x)", "exponential(x)")],
        "scaled: in line F1, unknown word 'exponential'. The vocabulary is + - * / ** @ .T",
    ),
    "not an assignment": (
        [("de = g * scale", "g * scale")],
        "scaled: in line B1, it must be one assignment, name = expression, got 'g * scale'",
    ),
    "an unknown name": (
        [("de * e", "de * f")],
        "scaled: line B2, dx = de * f, names f, which is not among x, scale, e, y, g, de. The "
        "scope is: rows: x (B, C), scale (C,). Pass it as an argument, or in given={'f': ...}.",
    ),
    "a line that does not fit the arrays": (
        [("de * e", "de @ e")],
        "scaled: line B2, dx = de @ e, cannot be evaluated on these arrays. Give arrays at the "
        "derivation's scope: rows: x (B, C), scale (C,). JAX says: ",
    ),
    "a last line without a label": (
        [("(B3) from F2", "")],
        "scaled: its docstring must have a derivation, lines that end with (F1) under Forward "
        "and (B1) from F1 under Backward, got 'dscale = sum_rows(g * e)'. See "
        "docs/adding-a-rule.md.",
    ),
    "no B lines": (
        [("    Backward   de", "\n    Backwards  de")],
        "scaled: its docstring must have a derivation, lines that end with (F1) under Forward "
        "and (B1) from F1 under Backward, got 'none'. See docs/adding-a-rule.md.",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_docstring_is_said(name: str) -> None:
    changes, expected = WRONG[name]
    text = RIGHT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    problems = problems_of(text)
    assert any(problem.startswith(f"scaled, the case: {expected}") for problem in problems)


@pytest.mark.parametrize("text", [None, "", "Scale an exponential.\n\nArgs:\n    x: an array."])
def test_a_docstring_without_a_derivation_is_refused(text: str | None) -> None:
    rule = scaled("")
    rule.reference.__doc__ = text
    expected = (
        "scaled: its docstring must have a derivation, lines that end with (F1) under Forward and "
        "(B1) from F1 under Backward, got 'none'. See docs/adding-a-rule.md."
    )
    with pytest.raises(ValueError, match="must have a derivation") as refused:
        derivation(rule)
    assert str(refused.value) == expected
    with pytest.raises(ValueError, match="must have a derivation"):
        jaxprop.derive(rule, X, SCALE)
    assert verified(rule, Case("the case", (X, SCALE))) == [f"scaled, the case: {expected}"]


def test_a_derivation_is_read_line_by_line_up_to_the_next_empty_line() -> None:
    lines = derivation(scaled(RIGHT))
    assert (lines.rule, lines.scope) == ("scaled", "rows: x (B, C), scale (C,)")
    assert [line.label for line in lines] == ["F1", "F2", "B1", "B2", "B3"]
    last = list(lines)[-1]
    assert (last.name, last.text) == ("dscale", "dscale = sum_rows(g * e)")
    assert last.follows == ("F2",)


def test_a_line_may_run_over_several_lines_of_text() -> None:
    gelu = {line.label: line for line in derivation(jaxprop.gelu)}
    assert gelu["F2"].text == (
        "p = where(approximate, 1 / (1 + exp(-2 * u)), (1 + erf(x / sqrt(2))) / 2)"
    )
    assert gelu["B3"].follows == ("F1", "F2", "F3")


def test_derive_gives_the_value_of_every_line_in_float64() -> None:
    x = X.astype(np.float32)
    derived = jaxprop.derive(scaled(RIGHT), x, SCALE, g=np.ones((2, 3), np.float32))
    truth = {
        "F1": np.exp(X),
        "F2": np.exp(X) * SCALE,
        "B1": np.broadcast_to(SCALE, X.shape),
        "B2": np.exp(X) * SCALE,
        "B3": np.sum(np.exp(X), axis=0),
    }
    assert all(isinstance(value, np.ndarray) for value in derived.values.values())
    assert {value.dtype for value in derived.values.values()} == {np.dtype("float64")}
    assert_near(derived.values, truth, "float64", reduced=2)


def test_derive_takes_g_as_ones_unless_told() -> None:
    rule = scaled(RIGHT)
    ones = jaxprop.derive(rule, X, SCALE).values
    assert_near(jaxprop.derive(rule, X, SCALE, g=np.ones((2, 3))).values, ones, "float64")
    twice = jaxprop.derive(rule, X, SCALE, g=np.full((2, 3), 2.0)).values
    assert_near(twice["B3"], 2 * ones["B3"], "float64")


def test_derive_leaves_the_precision_of_jax_as_it_was() -> None:
    jaxprop.derive(scaled(RIGHT), X, SCALE)
    assert jnp.asarray(X).dtype == jnp.float32


def test_derive_prints_each_line_with_its_value_shape_and_what_it_follows_from() -> None:
    rows = str(jaxprop.derive(scaled(RIGHT), X[:1], SCALE)).splitlines()
    assert rows == [
        "scaled: rows: x (B, C), scale (C,)",
        "  F1  e = exp(x)                (1, 3)",
        "        [[1.6487 0.3679 7.3891]]",
        "  F2  y = e * scale             (1, 3)",
        "        [[ 3.2974  1.1036 -7.3891]]",
        "  B1  de = g * scale            (1, 3)  from F2",
        "        [[ 2.  3. -1.]]",
        "  B2  dx = de * e               (1, 3)  from F1",
        "        [[ 3.2974  1.1036 -7.3891]]",
        "  B3  dscale = sum_rows(g * e)  (3,)  from F2",
        "        [1.6487 0.3679 7.3891]",
    ]


def test_derive_prints_the_range_and_mean_of_a_big_array() -> None:
    x = np.linspace(-1.0, 1.0, 25)
    rows = str(jaxprop.derive(jaxprop.identity, x)).splitlines()
    assert rows[:3] == ["identity: elementwise: any shape", "  F1  y = x   (25,)", rows[2]]
    low, high, mean = re.fullmatch(r" {8}(\S+) to (\S+), mean (\S+)", rows[2]).groups()
    assert (float(low), float(high)) == (-1, 1)
    assert abs(float(mean)) <= tolerance("float64", reduced=25)


def test_derive_reads_options_defaults_and_what_is_given() -> None:
    x = np.array([-1.0, 1.0])
    assert_near(jaxprop.derive(jaxprop.leaky_relu, x).values["F1"], np.array([-0.01, 1.0]))
    steep = jaxprop.derive(jaxprop.leaky_relu, x, slope=0.5)
    assert_near(steep.values["F1"], np.array([-0.5, 1.0]))
    bound = jaxprop.derive(jaxprop.leaky_relu.bind(slope=0.25), x)
    assert_near(bound.values["F1"], np.array([-0.25, 1.0]))
    leaf = jaxprop.derive(jaxprop.l2, given={"w": x})
    assert_near(leaf.values["F1"], np.array(1.0))


def chosen_reference(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Sum the chosen logits.

    Scope      rows: logits (B, C)
    Forward    q = one_hot(labels, logits)                             (F1)
               y = sum_all(q * logits)                                 (F2)
    Backward   dq = g * logits                                         (B1) from F2
               dlogits = g * q                                         (B2) from F2
               dlabels = dq                                            (B3) from F1
    """
    return jnp.sum(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype) * logits)


def test_derive_has_no_line_for_the_gradient_of_integers() -> None:
    """Which have none; `one_hot` reads the shape of logits alone, so B2 follows from F2 alone."""
    rule, labels = Rule(chosen_reference, *[lambda *args: None] * 2), np.array([2, 0])
    derived = jaxprop.derive(rule, X, labels)
    assert list(derived.values) == ["F1", "F2", "B1", "B2"]
    assert "dlabels" not in str(derived)
    assert verified(rule, Case("classes", (X, labels))) == []


def test_derive_says_which_name_has_no_value_and_how_to_give_it() -> None:
    with pytest.raises(ValueError, match="names w, which is not among") as refused:
        jaxprop.derive(jaxprop.l2, {"layer": np.ones(2)})
    assert str(refused.value).startswith("l2: line F1, omega = sum_all(w * w) / 2, names w")
    assert "The scope is: one leaf w of any shape; the sum over leaves is omega." in str(
        refused.value
    )
    assert str(refused.value).endswith("Pass it as an argument, or in given={'w': ...}.")


def test_derive_refuses_arrays_that_are_not_at_the_scope() -> None:
    with pytest.raises(ValueError, match=r"linear: line F1, y = x @ w \+ b, cannot be evaluated"):
        jaxprop.derive(jaxprop.linear, np.ones((2, 3)), np.ones((2, 3)), np.ones(3))


def test_derive_refuses_a_g_of_another_shape() -> None:
    with pytest.raises(ValueError, match="g must have") as refused:
        jaxprop.derive(scaled(RIGHT), X, SCALE, g=np.ones(3))
    assert str(refused.value) == (
        "scaled: g must have the shape of y, (2, 3), got (3,). Give one cotangent per element of "
        "the output."
    )


SEVERAL = """Scale rows, beside the statistics of a batch.

    Scope      rows: x (B, C), gamma (C,)
    Forward    y = gamma * x                                           (F1)
               mean = sum_rows(x) / rows(x)                            (F2)
               square = sum_rows(x * x) / rows(x)                      (F3)
    Backward   dx = gamma * g_y + (g_mean + 2 * x * g_square) / rows(x)  (B1) from F1, F2, F3
               dgamma = sum_rows(g_y * x)                              (B2) from F1
    """


def test_a_rule_with_several_outputs_has_a_cotangent_for_each() -> None:
    """`statistics` returns (y, {"mean": ..., "square": ...})."""
    rule = with_docstring(statistics, SEVERAL)
    case = Case("rows", (X, SCALE))
    assert derivation(rule).outputs == {"y": "g_y", "mean": "g_mean", "square": "g_square"}
    assert verified(rule, case) == []
    for line in derivation(rule):
        for slip in slips(line):
            assert verified(with_line(rule, line.label, slip.expression), case), slip


def test_derive_takes_the_cotangents_of_several_outputs_by_name() -> None:
    rule = with_docstring(statistics, SEVERAL)
    g = {"y": np.zeros((2, 3)), "mean": np.array([1.0, 2.0, 3.0]), "square": np.zeros(3)}
    derived = jaxprop.derive(rule, X, SCALE, g=g)
    assert_near(derived.values["B1"], np.array([[0.5, 1.0, 1.5]] * 2), "float64")
    del g["y"]  # ones, as g is where it is not given
    derived = jaxprop.derive(rule, X, SCALE, g=g)
    assert_near(derived.values["B2"], np.sum(X, axis=0), "float64", reduced=2)


def test_derive_refuses_a_cotangent_of_one_output_of_another_shape() -> None:
    rule = with_docstring(statistics, SEVERAL)
    with pytest.raises(ValueError, match=r"statistics: g_mean must have the shape of mean, \(3,\)"):
        jaxprop.derive(rule, X, SCALE, g={"mean": np.ones((2, 3))})


def test_outputs_in_another_order_than_the_rule_returns_them_are_found() -> None:
    swapped = SEVERAL.replace("mean = sum_rows(x)", "m = sum_rows(x)").replace("g_mean", "g_m")
    swapped = swapped.replace("square = sum_rows(x * x)", "mean = sum_rows(x * x)")
    swapped = swapped.replace("g_square", "g_mean")
    order = swapped.replace("m = sum_rows(x) ", "m = sum_rows(x * x) ")
    order = order.replace("mean = sum_rows(x * x) ", "mean = sum_rows(x) ")
    assert verified(with_docstring(statistics, swapped), Case("rows", (X, SCALE))) == []
    problems = verified(with_docstring(statistics, order), Case("rows", (X, SCALE)))
    assert any("the F lines give m another value" in problem for problem in problems)


# What `derive` and `verify` do not do yet. Each of these passes once they do.


def test_a_line_that_stops_the_evaluation_does_not_hide_what_was_found_before() -> None:
    text = RIGHT.replace("(B2) from F1", "(B2) from F2").replace("sum_rows(g * e)", "g @ e")
    problems = problems_of(text)
    assert any("B3, dscale = g @ e, cannot be evaluated" in problem for problem in problems)
    assert any("B2 must cite F1" in problem for problem in problems)


def test_a_line_of_the_wrong_shape_is_named_though_a_later_line_cannot_be_evaluated() -> None:
    problems = problems_of(RIGHT.replace("de = g * scale", "de = g.T"))
    assert any("B1, de = g.T" in problem for problem in problems)


@pytest.mark.xfail(strict=True, reason="an output is known by its cotangent in the B lines alone")
def test_a_cotangent_that_no_line_reads_is_named() -> None:
    rule = with_docstring(statistics, SEVERAL.replace("(g_mean + 2 * x * g_square)", "g_mean"))
    problems = verified(rule, Case("rows", (X, SCALE)))
    assert any("g_square" in problem for problem in problems)


def shifted_reference(x: jax.Array, n: jax.Array) -> jax.Array:
    """Add whole numbers.

    Scope      any shape
    Forward    y = x + n                                               (F1)
    Backward   dx = g                                                  (B1) from F1
               dn = g                                                  (B2) from F1
    """
    return x + n.astype(x.dtype)


def test_derive_mixes_integers_and_floating_numbers_whatever_the_dtype_promotion() -> None:
    rule = Rule(shifted_reference, *[lambda *args: None] * 2)
    derived = jaxprop.derive(rule, X, np.array([1, 2, 3]))
    assert_near(derived.values["F1"], X + np.array([1.0, 2.0, 3.0]), "float64")


def test_derive_refuses_logits_without_an_axis_of_classes() -> None:
    rule = Rule(chosen_reference, *[lambda *args: None] * 2)
    with pytest.raises(ValueError, match=r"line F1, .* cannot be evaluated on these arrays"):
        jaxprop.derive(rule, np.array(1.0), np.array([2, 0]))
