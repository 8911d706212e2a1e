"""The command `scripts/train.py`: arguments in, an exit code out, no traceback."""

import sys
from collections.abc import Sequence

import jax

from jaxprop.train.errors import TrainingError

OF_MODELS = ("safetensors", "tokenizers")
EXTRAS = (*OF_MODELS, "matplotlib", "orbax", "sklearn", "tqdm", "tyro")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the arguments say (those of the process where None); return the exit code.

    0: complete. 1: it could not be done, and one line on stderr says why. 130, 143: stopped
    by Ctrl-C or SIGTERM.
    """
    try:
        # Not at the top: where an extra is missing, that is one line too.
        from jaxprop.train.options import parse, parse_text
        from jaxprop.train.running import run
        from jaxprop.train.text_running import run_text

        given = sys.argv[1:] if arguments is None else list(arguments)
        if given[:1] == ["text"]:
            return run_text(parse_text(given[1:]))
        return run(parse(given))
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in EXTRAS:
            raise
        extra = "models" if (error.name or "") in OF_MODELS else "train"
        return _fail(f"needs {error.name}, which is not installed: pip install -e '.[{extra}]'.")
    except TrainingError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _fail("stopped at once; what was saved before is kept.", 130)
    except (OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        return _fail(f"this machine could not do it: {reason}")


def _fail(message: str, code: int = 1) -> int:
    print(f"train: {message}", file=sys.stderr)
    return code
