"""The Rule record and the call: what a rule shows, binds and refuses, and how it compares."""

import copy
import inspect
import pickle
import pydoc
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop
from jaxprop import Case, Rule
from jaxprop.rule import _custom_vjp
from tests.small_rules import (
    lookup,
    masked,
    nested,
    power,
    power_reference,
    ranked,
    statistics,
)
from tests.tolerances import assert_near

X = np.array([1.0, 2.0, 3.0], np.float32)


def square_reference(x):
    """Square."""
    return x * x


def _lie() -> Rule:
    """A rule whose forward and backward are not its reference's: 7 * x, and 7."""
    return Rule(square_reference, lambda x: (7 * x, ()), lambda res, g: (7 * g,))


# What a rule shows


def test_a_rule_shows_its_references_name_docstring_and_signature() -> None:
    assert power.name == power.__name__ == "power"
    assert power.__doc__ == power_reference.__doc__
    assert power.__module__ == power_reference.__module__
    assert inspect.signature(power) == inspect.signature(power_reference)
    assert repr(power) == "power(x, *, exponent=2)"


def test_help_shows_the_docstring_of_the_reference() -> None:
    assert "An option: y = x ** exponent." in pydoc.render_doc(power, renderer=pydoc.plaintext)


def test_argument_names_leave_the_options_out() -> None:
    assert power.argument_names == ("x",)
    assert lookup.argument_names == ("tokens", "table", "scale")


def test_a_reference_without_a_name_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^Rule: reference must be a function with a name, got pa"):
        Rule(partial(power_reference, exponent=3), power.forward, power.backward)


@pytest.mark.parametrize("reference", [lambda *xs: xs[0], lambda x, **options: x])
def test_a_variadic_reference_is_refused(reference: Any) -> None:
    with pytest.raises(TypeError, match=r"must have a name, got \*.*Take a tuple or a dict"):
        Rule(reference, power.forward, power.backward)


# How arguments and options are bound


def test_defaults_are_bound_where_left_out() -> None:
    assert_near(power(X), X**2)
    assert_near(jax.grad(lambda x: power(x).sum())(X), 2 * X)
    y, saved = power.forward(X)
    assert_near(y, X**2)
    assert_near(power.backward(saved, jnp.ones(3)), (2 * X,))


def test_an_optional_argument_left_out_is_none() -> None:
    x, w = jnp.ones((2, 3)), jnp.ones((3, 4))
    assert_near(jaxprop.linear(x, w), jaxprop.linear(x, w, None))
    _, saved = jaxprop.linear.forward(x, w)
    assert jaxprop.linear.backward(saved, jnp.ones((2, 4)))[2] is None


def test_arguments_may_be_given_by_name() -> None:
    x, w, b = jnp.ones((2, 3)), jnp.ones((3, 4)), jnp.ones(4)

    def by_name(x, w):
        return jaxprop.linear(b=b, w=w, x=x).sum()

    assert_near(by_name(x, w), jnp.asarray(32.0))
    assert_near(jax.grad(by_name, 1)(x, 2 * w), jnp.full((3, 4), 2.0))
    assert_near(jaxprop.linear.forward(w=w, x=x)[0], jnp.full((2, 4), 3.0))


def test_numbers_and_numpy_arrays_are_arguments() -> None:
    assert_near(power(3.0), jnp.asarray(9.0))
    assert_near(power(X, exponent=3), X**3)
    args, options = power.resolve(X)
    assert isinstance(args[0], jax.Array)
    assert options == {"exponent": 2}


@pytest.mark.parametrize("call", [power, power.forward])
def test_arguments_that_do_not_fit_are_refused_with_the_signature(call: Any) -> None:
    with pytest.raises(TypeError, match=r"^power: missing .* Call it as power\(x, \*, exponent=2"):
        call()
    with pytest.raises(TypeError, match=r"^power: too many positional arguments"):
        call(X, 3)
    with pytest.raises(TypeError, match=r"^power: .*unexpected keyword argument 'exp'"):
        call(X, exp=3)


# Options are static


def test_an_array_as_an_option_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^power: the option exponent must be a Python value"):
        power(X, exponent=jnp.asarray(3.0))
    with pytest.raises(TypeError, match=r"^power: the option exponent .* compilation"):
        power.bind(exponent=jnp.asarray(3.0))


@pytest.mark.parametrize("call", [power, power.forward])
def test_a_tracer_as_an_option_is_refused_with_a_remedy(call: Any) -> None:
    def run(x, exponent):
        return call(x, exponent=exponent)

    message = r"^power: the option exponent .* known when tracing, got an array .*static_argnames"
    with pytest.raises(TypeError, match=message):
        jax.jit(run)(X, 3)
    with pytest.raises(TypeError, match=message):
        jax.grad(lambda e: power(X, exponent=e).sum())(3.0)
    assert_near(jax.jit(run, static_argnames="exponent")(X, 3), run(X, 3))


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, np.ones(2), ([1],)])
def test_an_unhashable_option_is_refused_with_a_remedy(value: Any) -> None:
    message = r"^power: the option exponent must be hashable, got .*Give a tuple"
    with pytest.raises(TypeError, match=message):
        power(X, exponent=value)
    with pytest.raises(TypeError, match=message):
        power.bind(exponent=value)


def test_a_tracer_within_a_tuple_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^power: the option exponent must be hashable, got tuple"):
        jax.jit(lambda x: power(X, exponent=(x, 1)))(1.0)


def _factor(tag: Any) -> float:
    """Another number for each of 1, 1.0 and True, and for those in a tuple."""
    return {int: 1.0, float: 2.0, bool: 3.0}[type(tag[0] if isinstance(tag, tuple) else tag)]


def tagged_reference(x, *, tag=1):
    return x * _factor(tag)


tagged = Rule(
    tagged_reference,
    lambda x, *, tag: (x * _factor(tag), (jnp.asarray(_factor(tag), x.dtype),)),
    lambda res, g: (g * res[0],),
)


@pytest.mark.parametrize("wrap", [lambda tag: tag, lambda tag: (tag, "b")])
def test_1_and_1_0_and_true_are_different_programs(wrap: Any) -> None:
    for tag, factor in [(1, 1.0), (1.0, 2.0), (True, 3.0), (1, 1.0)]:
        assert_near(tagged(2.0, tag=wrap(tag)), jnp.asarray(2 * factor))
        slope = jax.jit(jax.grad(partial(tagged, tag=wrap(tag))))
        assert_near(slope(2.0), jnp.asarray(factor))
        assert_near(tagged.bind(tag=wrap(tag))(2.0), jnp.asarray(2 * factor))


def test_a_default_left_out_and_given_are_one_program() -> None:
    _, left_out = tagged.resolve(2.0)
    _, given = tagged.resolve(2.0, tag=1)
    assert _custom_vjp(tagged, left_out) is _custom_vjp(tagged, given)


# bind


def two_options_reference(x, *, scale=1.0, shift=0.0):
    return x * scale + shift


def _two_options_cases():
    return [Case("scaled", (X,), {"scale": 3.0, "shift": 1.0}), Case("plain", (X,))]


two_options = Rule(
    two_options_reference,
    lambda x, *, scale, shift: (x * scale + shift, jnp.asarray(scale, x.dtype)),
    lambda scale, g: (scale * g,),
    _two_options_cases,
    budget=4,
    surrogate=True,
)


def test_bind_fixes_an_option_and_leaves_the_others() -> None:
    tripled = two_options.bind(scale=3.0)
    assert repr(tripled) == "two_options(x, *, shift=0.0)"
    assert tripled.__doc__ == two_options.__doc__
    assert_near(tripled(X, shift=1.0), 3 * X + 1)
    assert_near(tripled.reference(X), 3 * X)
    assert_near(jax.grad(lambda x: tripled(x).sum())(X), 3 * np.ones_like(X))
    with pytest.raises(TypeError, match=r"^two_options: .*'scale'"):
        tripled(X, scale=2.0)


def _unused(*args: Any) -> Any:
    raise AssertionError


def test_cases_have_jax_arrays_where_they_were_given_numpys() -> None:
    given = {"a": np.ones(3, np.float32), "b": (np.float32(2), None)}
    key = jax.random.key(0)

    def reference(tree: Any, count: Any, key: Any) -> jax.Array:
        return tree["a"] * tree["b"][0]

    rule = Rule(reference, _unused, _unused, lambda: [Case("tree", (given, 3, key))])
    tree, count, kept = rule.cases()[0].args
    assert [type(leaf) for leaf in jax.tree.leaves(tree)] == [type(jnp.ones(3))] * 2
    np.testing.assert_array_equal(tree["a"], given["a"])
    assert (tree["b"][0].dtype, tree["b"][1], count, kept) == (jnp.float32, None, 3, key)
    assert list(Rule(reference, _unused, _unused).cases()) == []


def test_bind_keeps_the_cases_the_budget_and_surrogate() -> None:
    tripled = two_options.bind(scale=3.0)
    assert [case.name for case in tripled.cases()] == ["scaled", "plain"]
    assert [dict(case.options) for case in tripled.cases()] == [{"shift": 1.0}, {}]
    assert (tripled.budget, tripled.surrogate) == (4, True)


def test_bind_twice_fixes_both_options() -> None:
    both = two_options.bind(scale=3.0).bind(shift=1.0)
    assert both.bound == {"scale": 3.0, "shift": 1.0}
    assert_near(both(X), 3 * X + 1)
    assert two_options.bound == {}


@pytest.mark.parametrize("name", ["x", "slope"])
def test_bind_refuses_what_is_no_option(name: str) -> None:
    message = rf"^two_options.bind: '{name}' is not an option of two_options\(x, .*Only options"
    with pytest.raises(TypeError, match=message):
        two_options.bind(**{name: 2.0})


# Identity


def test_rules_compare_by_identity() -> None:
    twin = Rule(power.reference, power._raw.forward, power._raw.backward)
    assert twin != power
    assert len({twin, power, power}) == 2
    assert power.bind(exponent=3) != power.bind(exponent=3)


def test_a_second_call_traces_nothing() -> None:
    traced = []

    def forward(x):
        traced.append(x)
        return x * x, x

    rule = Rule(square_reference, forward, lambda x, g: (2 * x * g,))
    for _ in range(3):
        jax.jit(rule)(X)
    assert len(traced) == 1


def test_as_a_static_argument_each_rule_is_its_own_program() -> None:
    traced = []

    @partial(jax.jit, static_argnums=0)
    def slope(rule, x):
        traced.append(rule)
        return jax.grad(rule)(x)

    lies, square = _lie(), Rule(square_reference, lambda x: (x * x, x), lambda x, g: (2 * x * g,))
    for _ in range(2):
        assert_near(slope(lies, 5.0), jnp.asarray(7.0))
        assert_near(slope(square, 5.0), jnp.asarray(10.0))
    assert traced == [lies, square]


def _pickled(rule: Rule) -> Rule:
    return pickle.loads(pickle.dumps(rule))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, _pickled])
@pytest.mark.parametrize("rule", [jaxprop.linear, power], ids=["library", "own"])
def test_a_copy_is_the_rule_itself(copied: Any, rule: Rule) -> None:
    assert copied(rule) is rule
    assert copied({"rule": rule})["rule"] is rule


@pytest.mark.parametrize("rule", [power.bind(exponent=3), _lie(), jaxprop.dense(3)], ids=str)
def test_a_rule_that_its_module_does_not_name_is_not_pickled(rule: Rule) -> None:
    with pytest.raises(pickle.PicklingError, match=rule.name):
        pickle.dumps(rule)
    assert copy.deepcopy(rule) is rule


def test_threads_that_install_at_once_share_one_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has found nothing installed before any of them installs."""
    fresh = Rule(power_reference, power._raw.forward, power._raw.backward)
    barrier, custom_vjp = threading.Barrier(4, timeout=60), jax.custom_vjp

    def after_the_others(function):
        barrier.wait()
        return custom_vjp(function)

    monkeypatch.setattr(jax, "custom_vjp", after_the_others)
    with ThreadPoolExecutor(4) as threads:
        installed = list(threads.map(lambda _: _custom_vjp(fresh, {"exponent": 3}), range(4)))
        slopes = list(threads.map(jax.grad(partial(fresh, exponent=3)), [1.0, 2.0, 3.0, 4.0]))
    assert len(set(map(id, installed))) == 1
    assert_near(jnp.stack(slopes), jnp.array([3.0, 12.0, 27.0, 48.0]))


# automatic()


def test_a_call_runs_the_forward_and_within_automatic_the_reference() -> None:
    assert_near(_lie()(5.0), jnp.asarray(35.0))
    with jaxprop.automatic():
        assert_near(_lie()(5.0), jnp.asarray(25.0))


def test_automatic_leaves_other_threads_alone() -> None:
    slope = jax.grad(_lie())
    with ThreadPoolExecutor(1) as thread, jaxprop.automatic():
        assert_near(slope(5.0), jnp.asarray(10.0))
        assert_near(thread.submit(slope, 5.0).result(), jnp.asarray(7.0))


def test_forward_and_backward_ignore_automatic() -> None:
    with jaxprop.automatic():
        y, saved = _lie().forward(5.0)
        assert_near(y, jnp.asarray(35.0))
        assert_near(_lie().backward(saved, 1.0), (jnp.asarray(7.0),))


def test_automatic_ends_where_its_context_ends() -> None:
    slope = jax.grad(_lie())
    with pytest.raises(KeyError), jaxprop.automatic():
        raise KeyError
    assert_near(slope(5.0), jnp.asarray(7.0))


# The halves, run by hand


@pytest.mark.parametrize("returned", [X, [X, ()], (X, (), ())])
def test_a_forward_that_does_not_return_a_pair_is_refused(returned: Any) -> None:
    rule = Rule(square_reference, lambda x: returned, lambda res, g: (g,))
    message = r"^square.forward must return \(output, residuals\), got .*residuals=\(\)"
    with pytest.raises(TypeError, match=message):
        rule.forward(X)
    with pytest.raises(TypeError, match=message):
        rule(X)


def test_residuals_that_are_no_forwards_are_refused() -> None:
    message = r"^power.backward: residuals must be what power.forward returned .* got tuple. Call y"
    with pytest.raises(TypeError, match=message):
        power.backward((X, jnp.asarray(2.0)), X)


def test_a_backward_needs_no_residuals() -> None:
    """Residuals may be empty; the types of the primals are kept beside them."""
    _, saved = _lie().forward(X)
    assert jax.tree.leaves(saved) == []
    assert_near(_lie().backward(saved, jnp.ones(3)), (7 * np.ones_like(X),))


# Integers, keys and None


TOKENS = np.array([2, 0, 2, 1], np.int32)
TABLE = np.arange(6, dtype=np.float32).reshape(3, 2)
KEY_DATA = np.array([0, 42], np.uint32)


def _nested_params() -> dict:
    ones = jnp.ones((3, 2))
    return {
        "map": {"w": ones, "b": None},
        "times": jnp.asarray(3, jnp.int32),
        "unused": {"a": ones, "b": jnp.zeros((0,))},
    }


def test_integers_and_none_get_the_cotangent_none() -> None:
    _, saved = lookup.forward(TOKENS, TABLE, None)
    dtokens, dtable, dscale = lookup.backward(saved, jnp.ones((4, 2)))
    assert dtokens is None
    assert dscale is None
    assert_near(dtable, jnp.array([[1.0, 1.0], [1.0, 1.0], [2.0, 2.0]]))
    assert_near(jax.grad(lambda t: lookup(TOKENS, t).sum())(TABLE), dtable)


def test_keys_get_the_cotangent_none() -> None:
    key = jax.random.wrap_key_data(KEY_DATA)
    y, saved = masked.forward(jnp.ones(64), 0.5, key)
    assert 0 < int((y == 0).sum()) < 64
    dx, drate, dkey = masked.backward(saved, jnp.ones(64))
    assert drate is None
    assert dkey is None
    assert_near(dx, y)


def test_a_none_that_a_rule_gives_an_argument_is_a_zero_gradient_to_jax() -> None:
    key = jax.random.wrap_key_data(KEY_DATA)
    drate = jax.grad(lambda rate: masked(jnp.ones(64), rate, key).sum())(0.5)
    assert_near(drate, jnp.asarray(0.0))


def test_a_key_of_none_is_evaluation() -> None:
    y, saved = masked.forward(X, 0.5, None)
    assert_near(y, X)
    assert_near(masked.backward(saved, 2 * X)[0], 2 * X)
    assert_near(jax.grad(lambda x: masked(x, 0.5, None).sum())(X), np.ones_like(X))


def test_an_argument_may_nest_integers_and_nones() -> None:
    params, x = _nested_params(), jnp.ones((4, 3))
    _, saved = nested.forward(params, x)
    dparams, dx = nested.backward(saved, jnp.ones((4, 2)))
    assert dparams["times"] is None
    assert dparams["map"]["b"] is None
    assert dparams["unused"] == {"a": None, "b": None}
    assert_near(dparams["map"]["w"], jnp.full((3, 2), 12.0))
    assert_near(dx, jnp.full((4, 3), 6.0))


def test_jax_differentiates_a_nested_argument_with_integers() -> None:
    params, x = _nested_params(), jnp.ones((4, 3))
    dparams = jax.grad(lambda p: nested(p, x).sum(), allow_int=True)(params)
    assert jax.tree.structure(dparams) == jax.tree.structure(params)
    assert dparams["times"].dtype == jax.dtypes.float0  # jax makes it, no rule does
    assert_near(dparams["map"]["w"], jnp.full((3, 2), 12.0))
    assert_near(dparams["unused"]["a"], jnp.zeros((3, 2)))


def test_a_cotangent_for_an_integer_is_dropped() -> None:
    rule = Rule(
        lookup.reference,
        lookup._raw.forward,
        lambda res, g: (np.zeros(4, jax.dtypes.float0), jnp.zeros_like(res[1]), None),
    )
    _, saved = rule.forward(TOKENS, TABLE)
    assert rule.backward(saved, jnp.ones((4, 2)))[0] is None


def test_integer_and_key_outputs_bring_no_cotangent() -> None:
    """The rule asserts that it sees None for them, from jax and from hand alike."""
    x = jnp.array([3.0, 1.0, 2.0])
    (y, order, key), saved = ranked.forward(x)
    assert order.tolist() == [1, 2, 0]
    assert jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    assert_near(ranked.backward(saved, (jnp.ones(3), None, None)), (2 * x,))
    assert_near(ranked.backward(saved, (jnp.ones(3), order, None)), (2 * x,))
    assert_near(jax.grad(lambda x: ranked(x)[0].sum())(x), 2 * x)
    assert_near(y, x * x)


# None as a cotangent


def _statistics() -> tuple[Any, Any]:
    x = jnp.linspace(-1.0, 2.0, 12).reshape(4, 3)
    return statistics.forward(x, x[1])


def test_none_stands_for_zeros_at_a_leaf() -> None:
    (y, parts), saved = _statistics()
    zeros = jnp.zeros_like(parts["mean"])
    explicit = statistics.backward(saved, (y, {"mean": zeros, "square": parts["square"]}))
    assert_near(
        statistics.backward(saved, (y, {"mean": None, "square": parts["square"]})), explicit
    )
    assert float(jnp.abs(explicit[0]).max()) > 0


def test_none_stands_for_zeros_in_place_of_a_tree() -> None:
    (y, parts), saved = _statistics()
    zeros = jax.tree.map(jnp.zeros_like, parts)
    assert_near(statistics.backward(saved, (y, None)), statistics.backward(saved, (y, zeros)))
    dx, dgamma = statistics.backward(saved, None)
    assert_near((dx, dgamma), (jnp.zeros((4, 3)), jnp.zeros(3)))


# Importing


IMPORT = """
import sys
optional = ("sklearn", "matplotlib", "tyro", "orbax", "tqdm", "torch", "flax", "equinox", "pytest")
for name in optional:
    sys.modules[name] = None  # importing it raises
import jax, jaxlib, optax
before = {name.partition(".")[0] for name in sys.modules}
import jaxprop
after = {name.partition(".")[0] for name in sys.modules}
print(sorted(after - before - sys.stdlib_module_names))
jax.config.update("jax_num_cpu_devices", 3)  # raises where a backend has started
print(jax.device_count())
"""


def test_importing_starts_no_backend_and_needs_jax_and_optax_alone() -> None:
    run = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[:2] == ["['jaxprop']", "3"]


def test_residuals_of_another_rule_are_refused() -> None:
    _, saved = jaxprop.relu.forward(jnp.ones(3))
    with pytest.raises(TypeError, match=r"^tanh.backward: residuals must be .*, got those of relu"):
        jaxprop.tanh.backward(saved, jnp.ones(3))


@pytest.mark.parametrize("text", ["f4", "float32", "a"])
def test_a_string_is_no_array_even_where_it_names_a_dtype(text: str) -> None:
    with pytest.raises(TypeError, match=r"^relu: x must be an array or a number, got str"):
        jaxprop.relu(text)
