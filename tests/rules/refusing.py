"""That a rule refuses arguments, whichever way it is run, and says why."""

from typing import Any

import pytest

from jaxprop import Rule


def assert_refuses(
    rule: Rule, args: tuple, error: type[Exception], message: str, **options: Any
) -> None:
    """The call, the reference and the forward all raise `error` with this whole text."""
    for function in (rule, rule.reference, rule.forward):
        with pytest.raises(error) as refused:
            function(*args, **options)
        assert str(refused.value) == message


def not_floating(owner: str, name: str, dtype: str) -> str:
    """What every rule says of an array that is not floating."""
    return (
        f"{owner}: {name} must have a floating dtype, got {dtype}. Convert it with "
        f"{name}.astype(jnp.float32)."
    )
