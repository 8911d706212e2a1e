"""What `scripts/check_vjps.py` is asked to check: catalogue rules, or other people's code."""

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from jaxprop.catalogue import CATALOGUE
from jaxprop.rule import Case, Rule

FORM = "package.module:function, or package.module:function@package.module:make_args"


class TargetError(Exception):
    """A name that stands for nothing that can be checked; the message says the remedy."""


@dataclass(frozen=True)
class Target:
    """Something to check, and where.

    arguments: full sets of arguments, the first to be checked at in full; none for a rule that
        is checked at its own cases.
    reference: what f is held against; None for what `jaxprop.check` finds.
    """

    name: str
    f: Callable[..., Any]
    arguments: tuple[tuple, ...] = ()
    reference: Callable[..., Any] | None = None

    @property
    def cases(self) -> Sequence[Case]:
        """A rule's own cases; none for another function."""
        return self.f.cases() if isinstance(self.f, Rule) else ()


def targets(names: Sequence[str]) -> list[Target]:
    """What the names stand for, each once; the whole catalogue where there is none.

    A name is a glob over the names of the catalogue's rules, or, with a colon in it,
    `package.module:attribute`: a function, a Rule, or a list of them, imported from the current
    folder or `sys.path`. After an @, in the same form: the arguments, or a function that makes
    them.

    Raises:
        TargetError: where a name stands for nothing, cannot be imported, or lacks arguments.
    """
    if not names:
        return [Target(rule.name, rule) for rule in CATALOGUE]
    found: dict[str, Target] = {}
    for name in names:
        for target in _imported(name) if ":" in name else _of_the_catalogue(name):
            found.setdefault(target.name, target)
    return list(found.values())


def with_reference(chosen: Sequence[Target], name: str) -> list[Target]:
    """The one target, to be held against the function of that name.

    Raises:
        TargetError: where there are several targets, or the name stands for no function.
    """
    if len(chosen) != 1:
        raise TargetError(
            f"--reference must go with one function, got {len(chosen)}. Check them one by one."
        )
    reference = _attribute(name)
    if not callable(reference):
        raise TargetError(f"{name} must be callable, got {type(reference).__name__}.")
    return [replace(chosen[0], reference=reference)]


def _of_the_catalogue(glob: str) -> list[Target]:
    chosen = [Target(rule.name, rule) for rule in CATALOGUE if fnmatchcase(rule.name, glob)]
    if not chosen:
        known = " ".join(rule.name for rule in CATALOGUE)
        raise TargetError(f"a name must match one of {known}, or be {FORM}; got {glob!r}.")
    return chosen


def _imported(name: str) -> Iterator[Target]:
    where, _, maker = name.partition("@")
    found = _attribute(where)
    arguments = _arguments(maker) if "@" in name else ()
    functions = {where: found}
    if isinstance(found, (list, tuple)):
        functions = {getattr(f, "__name__", f"{where}[{i}]"): f for i, f in enumerate(found)}
    for called, f in functions.items():
        if not callable(f):
            raise TargetError(
                f"{called} must be callable, got {type(f).__name__}. Name a function."
            )
        target = Target(called, f, arguments)
        if not arguments and not target.cases:
            raise TargetError(
                f"{called} needs arguments to be checked at, got none. Write a function that "
                f"returns a tuple of them and give {where}@package.module:make_args."
            )
        yield target


def _arguments(name: str) -> tuple[tuple, ...]:
    """One set of arguments or several, as they are or made by a function without arguments."""
    found = _attribute(name)
    if callable(found):
        try:
            found = found()
        except Exception as error:
            raise TargetError(f"{name}() raises {_brief(error)}. It is called without.") from None
    several = found if isinstance(found, list) else [found]
    if not several or not all(isinstance(args, tuple) for args in several):
        kinds = ", ".join(type(args).__name__ for args in several)
        got = f"a list of {kinds or 'nothing'}" if isinstance(found, list) else kinds
        raise TargetError(
            f"{name} must give a tuple of arguments or a list of such tuples, got {got}. A single "
            "argument x is (x,)."
        )
    return tuple(several)


def _attribute(name: str) -> Any:
    """What `package.module:attribute` names; the attribute may have dots."""
    module, _, path = name.partition(":")
    if not module or not path:
        raise TargetError(f"a name with a colon must be {FORM}; got {name!r}.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise TargetError(
            f"{module} cannot be imported, as there is no module {error.name!r} in the current "
            "folder or on sys.path. Go to the folder that has it, or set PYTHONPATH."
        ) from None
    except (Exception, SystemExit) as error:
        raise TargetError(f"{module} cannot be imported: it raises {_brief(error)}.") from None
    for part in path.split("."):
        if not hasattr(found, part):
            near = get_close_matches(part, dir(found), cutoff=0)
            raise TargetError(f"{module} has no {path!r}; the nearest it has: {' '.join(near)}.")
        found = getattr(found, part)
    return found


def _brief(error: BaseException) -> str:
    first = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
