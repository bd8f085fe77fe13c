"""The command line: parse, call, print. `unraze --help` answers without importing torch.

Exit status: 0 all went well; 1 a failure; 2 the command or one of its values will not do;
3 training diverged; 130 interrupted (and, in training, saved).
"""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from cyclopts.exceptions import CycloptsError, RepeatArgumentError, UnusedCliTokensError

from unraze.cli import (  # noqa: F401  (each adds its commands)
    card,
    deploy,
    diffusers,
    distill,
    draw,
    edit,
    evaluate,
    gather,
    look,
    lucidrains,
    publish,
    sample,
    studio,
    train,
    tune,
)
from unraze.cli.app import INTERRUPTED, app, unwrap
from unraze.environment import are_several
from unraze.errors import Elsewhere, UnrazeError

__all__ = ["main"]

USAGE = 2
BY_RANKS = (["train"], ["resume"], ["sample"], ["eval"], ["--help"], ["--version"])
"""The commands that torchrun may start several processes of."""

unwrap(app)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (sys.argv's where absent) and returns its exit status.

    An `UnrazeError` is one line on stderr; any other exception is a defect and keeps its traceback.
    """
    tokens = list(sys.argv[1:] if argv is None else argv)
    if are_several() and tokens[:1] not in BY_RANKS:
        command = " ".join(["unraze", *tokens[:1]])
        return _complain(f"{command}: is of one process; call it without torchrun", USAGE)
    ours = argv is None and threading.current_thread() is threading.main_thread()
    if ours and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)  # what is unfinished is to be tidied away
    try:
        status = app(tokens, exit_on_error=False, print_error=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except CycloptsError as error:
        return _complain(f"{_usage_sentence(error)} (see `{_help_for(error)}`)", USAGE)
    except Elsewhere as error:
        return error.exit_status
    except UnrazeError as error:
        return _complain(str(error), error.exit_status)
    except KeyboardInterrupt:
        if ours:  # the process ends now; another Ctrl-C would only break its ending
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # whoever read our output has gone; what is left of it must not fail again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        if ours and signal.getsignal(signal.SIGTERM) is _terminated:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # all is tidied away


def _terminated(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _complain(message: str, status: int) -> int:
    rank = os.environ.get("RANK", "0")
    of_rank = "" if rank == "0" else f"rank {rank}: "
    print(f"unraze: error: {of_rank}{' '.join(message.split())}", file=sys.stderr)
    return status


def _usage_sentence(error: CycloptsError) -> str:
    if isinstance(error, UnusedCliTokensError):
        return f"there is no place for {' '.join(map(repr, error.unused_tokens or []))}"
    if isinstance(error, RepeatArgumentError):
        return f"{error.token.keyword} is given twice; give one value"
    text = str(error)
    return text if text.endswith("...") else text.removesuffix(".")


def _help_for(error: CycloptsError) -> str:
    return " ".join(["unraze", *(error.command_chain or ()), "--help"])
