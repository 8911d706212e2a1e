"""The command `scripts/check_vjps.py`: arguments in, an exit code out, no traceback."""

import contextlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax

from jaxprop.checking import conformance
from jaxprop.checking.conformance import Row
from jaxprop.checking.targets import Target, TargetError, targets, with_reference

if TYPE_CHECKING:
    from jaxprop.checking.options import Options

EXTRAS = ("tqdm", "tyro")
DEVICES = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Check as the arguments say (those of the process where None); return the exit code.

    0: nothing failed. 1: something did, or it could not be done, and stderr says why. 130:
    stopped by Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        # Not at the top: where an extra is missing, that is one line too.
        from jaxprop.checking.options import parse

        return _run(parse(arguments), arguments)
    except SystemExit as leaving:
        return 1 if leaving.code else 0
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in EXTRAS:
            raise
        return _fail(f"needs {error.name}, which is not installed: pip install -e '.[train]'.")
    except (TargetError, OSError, jax.errors.JaxRuntimeError) as error:
        return _fail(str(error).split("\n")[0])
    except KeyboardInterrupt:
        return _fail("stopped.", 130)


def _run(options: "Options", arguments: Sequence[str]) -> int:
    for name, path in {"--json": options.json, "--markdown": options.markdown}.items():
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise TargetError(f"{name} must be a file in a folder that exists, got {path}.")
    if options.seed < 0:
        raise TargetError(f"--seed must be at least 0, got {options.seed}.")
    _ask_for_devices()
    chosen = targets(options.names)
    if options.reference is not None:
        chosen = with_reference(chosen, options.reference)
    if options.list:
        print("\n".join(target.name for target in chosen))
        return 0
    dtypes = tuple(dict.fromkeys(options.dtype)) or conformance.DTYPES_OF[options.level]
    rows: list[Row] = []
    try:
        _check(chosen, options, dtypes, rows)
    except KeyboardInterrupt:
        return _fail(f"stopped after {len(rows)} of {len(chosen)}.", 130)
    finally:
        _write(options, arguments, dtypes, rows, len(chosen))
    for row in rows:
        if row.report.verdict != "PASS":
            print(f"\n{row.report}")
    return 1 if any(row.report.verdict == "FAIL" for row in rows) else 0


def _ask_for_devices() -> None:
    """Several host devices, unless told, so that shard_map and meshes are checked too."""
    told = "JAX_NUM_CPU_DEVICES" in os.environ or "device_count" in os.environ.get("XLA_FLAGS", "")
    if not told:
        with contextlib.suppress(RuntimeError):  # too late: jax has started, in a notebook, say
            jax.config.update("jax_num_cpu_devices", DEVICES)


def _check(
    chosen: Sequence[Target], options: "Options", dtypes: Sequence[str], rows: list[Row]
) -> None:
    """Add each row to `rows` and print it when it is done, with a progress bar on a terminal."""
    from tqdm import tqdm

    width = max(len(target.name) for target in chosen)
    print(conformance.LEGEND)
    print(conformance.line(conformance.columns(dtypes), width), flush=True)
    quiet = not sys.stderr.isatty()
    with tqdm(chosen, disable=quiet, leave=False, unit=" rules") as bar:
        for target in bar:
            bar.set_description(target.name)
            with contextlib.redirect_stderr(_NoTerminal(sys.stderr)):
                row = conformance.conform(target, options.level, dtypes, options.seed)
            rows.append(row)  # first of all: whoever sees a row and stops here finds it kept
            with bar.external_write_mode():
                print(conformance.line(conformance.cells(row, dtypes), width), flush=True)
            jax.clear_caches()  # of hundreds of programs that no other rule runs


class _NoTerminal:
    """A stream on which `check` does not draw a progress line of its own over the bar."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        return False


def _write(
    options: "Options",
    arguments: Sequence[str],
    dtypes: Sequence[str],
    rows: Sequence[Row],
    asked: int,
) -> None:
    """The files that were asked for, of the rows that are done."""
    command = shlex.join(["scripts/check_vjps.py", *arguments])
    if options.json is not None:
        found = {
            "command": command,
            "machine": _machine(),
            "level": options.level,
            "complete": len(rows) == asked,
            "rows": [row.as_dict(dtypes) for row in rows],
        }
        options.json.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    if options.markdown is not None:
        machine = "; ".join(f"{name} {value}" for name, value in _machine().items())
        options.markdown.write_text(conformance.markdown(rows, dtypes, command, machine))


def _machine() -> dict[str, str]:
    """What a reader must know of where this was checked."""
    device = jax.devices()[0]
    return {
        "device": f"{device.platform} ({device.device_kind}), {jax.device_count()} of them",
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "jax": jax.__version__,
    }


def _fail(message: str, code: int = 1) -> int:
    print(f"check_vjps: {message}", file=sys.stderr)
    return code
