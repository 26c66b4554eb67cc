"""Run one command. The module that does its work is imported only then, so that `dpm --help` imports no torch."""

import os
import sys
from importlib import import_module

from dpm.cli.parser import build_parser
from dpm.errors import UserError


def main() -> int:
    """Run one command; a mistake of the user's is one line on stderr and exit status 2."""
    try:
        args = build_parser().parse_args()
        module, function = args.run.split(":")
        getattr(import_module(module), function)(args)
        sys.stdout.flush()
    except UserError as error:
        return print_error(str(error), 2)
    except KeyboardInterrupt:
        return print_error(
            "stopped; if it was training, the same command goes on with --resume in place of any --from", 130
        )
    except BrokenPipeError:  # the reader has closed the pipe; the flush at exit must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except RuntimeError as error:
        from torch import OutOfMemoryError  # by now torch is imported

        if not isinstance(error, OutOfMemoryError):
            raise
        return print_error("the memory of the GPU is too small; give a smaller --micro-batch, or a smaller -n", 2)
    return 0


def print_error(message: str, status: int) -> int:
    """Print one line on stderr, from one of several processes, and return the exit status."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"dpm: {message}", file=sys.stderr)
    return status
