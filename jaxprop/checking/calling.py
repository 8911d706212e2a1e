"""How a function can be called: by keyword, and with defaulted arguments left out."""

from collections.abc import Callable, Iterator

import jax

from jaxprop.checking.compiling import in_one_program
from jaxprop.checking.judging import brief, same
from jaxprop.checking.plan import Plan
from jaxprop.checking.probing import Cotangent, pull
from jaxprop.checking.report import Finding
from jaxprop.checking.subject import PyTree, Subject, positional
from jaxprop.rule import Rule

CHECK = "contract"


def calling(s: Subject, plan: Plan) -> Iterator[Finding]:
    """Check 1, continued: a bare `custom_vjp` may refuse what its signature promises.

    Others (a partial, `jax.vmap(f)`) show the signature of what they wrap and promise nothing.
    """
    parameters = [p for p in positional(s.whole) if p.kind is p.POSITIONAL_OR_KEYWORD]
    promises = isinstance(s.whole, (jax.custom_vjp, Rule))
    if not promises or s.static or len(parameters) < len(s.args):
        return
    names = [p.name for p in parameters]

    def by_keyword(*args: PyTree) -> PyTree:
        return s.whole(**dict(zip(names, args, strict=False)))

    g = plan.random_g(s, s.args)
    expected = _pulled(s.call, s.args, g)
    yield from _called(s, "by keyword", by_keyword, g, expected)
    defaults = [p.default for p in parameters[: len(s.args)]]
    last = next((i for i in range(len(s.args), 0, -1) if defaults[i - 1] is not s.args[i - 1]), 0)
    if last < len(s.args):

        def left_out(*args: PyTree) -> PyTree:
            return s.whole(*args[:last])

        yield from _called(s, "defaults left out", left_out, g, expected)


def _called(
    s: Subject, transform: str, f: Callable[..., PyTree], g: Cotangent, expected: list[jax.Array]
) -> Iterator[Finding]:
    try:
        got = _pulled(f, s.args, g)
    except Exception as error:
        message = f"raises {brief(error)}; give every argument, by position"
        yield Finding(CHECK, transform, "WARN", message=message)
        return
    yield from same(s, CHECK, transform, got, expected, tolerance=1e-5)


def _pulled(f: Callable[..., PyTree], args: tuple[PyTree, ...], g: Cotangent) -> list[jax.Array]:
    return in_one_program(lambda args, g: pull(f, args, g), args, g)
