"""The command line of `scripts/check_vjps.py`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxprop.checking.conformance import Level

DESCRIPTION = """Check hand-written VJPs: a row for each, then what is wrong with those that do not
pass. Errors are the worst, in ulps of the largest value of an output or argument; automatic
differentiation's stands beside them in brackets, as it does for the bytes saved for the backward.
The exit code is 1 where anything fails."""


@dataclass(frozen=True)
class Options:
    """What the command line sets."""

    names: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="NAME ...")] = ()
    """Globs over the catalogue's rules ('*norm*'), or package.module:function for a function, a
    Rule, or a list of Rules of your own, imported from the current folder or sys.path. A function
    needs arguments: package.module:function@package.module:make_args, where make_args() returns a
    tuple of arguments, or a list of such tuples. Of several, the first is checked at in full and
    the others as further shapes. Without names, the whole catalogue."""
    reference: str | None = None
    """package.module:function, a plain differentiable function of the same arguments to hold one
    function of your own against. Without it: what the custom_vjp wraps, or finite differences."""
    dtype: tuple[Literal["float32", "bfloat16", "float16"], ...] = ()
    """In which the numerics are judged: all three unless told, with --level quick float32."""
    level: Level = "full"
    """full: everything that jaxprop.check does. quick: contract, algebra, linearity, numerics, and
    the transformations on one device, at the first case for each setting of a rule's options; the
    algebra at its other cases; no edges."""
    seed: int = 0
    """Of every random number."""
    json: Path | None = None
    """File to write all outcomes to. Ctrl-C keeps the rows that are done."""
    markdown: Path | None = None
    """File to write the table and the findings to."""
    list: bool = False
    """Name what would be checked, and do nothing."""


def parse(arguments: Sequence[str]) -> Options:
    """The options that the arguments give; SystemExit after --help or a complaint."""
    return tyro.cli(Options, prog="check_vjps.py", description=DESCRIPTION, args=list(arguments))
