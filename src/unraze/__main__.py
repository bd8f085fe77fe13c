"""`unraze`, and `python -m unraze`: the command line, from its first moment.

Importing takes a tenth of a second, in which Ctrl-C is to end the program as it does later.
"""

import ctypes
import gc
import os
import sys

INTERRUPTED = 130  # as in unraze.cli.app, which is not imported yet
OPTIONS = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_MMAP_THRESHOLD_": -3}
"""What glibc gives back, by its variables in the environment and by its malloc.h."""
KEPT = 2**30
"""Bytes that are kept for what is asked for next."""


def keep_freed_memory() -> None:
    """Has glibc keep memory that is freed, up to `KEPT`, for what is asked for next; what the user
    chose stays.

    What a layer says is freed and asked for again in every step. Given back in between, its pages
    are emptied and mapped anew each time: thousands a step, tens of thousands for large pictures.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # other C libraries have none
            for variable, option in OPTIONS.items():
                if variable not in os.environ:
                    libc.mallopt(option, KEPT)


def main() -> int:
    """Runs the command line of sys.argv and returns its exit status, see `unraze.cli`."""
    try:
        keep_freed_memory()
        from unraze.cli import main as command_line
    except KeyboardInterrupt:
        print("unraze: error: interrupted", file=sys.stderr)
        return INTERRUPTED
    status = command_line()
    gc.freeze()  # or all of torch is looked through for garbage, which takes longer than to save
    if os.environ.get("WORLD_SIZE", "") not in ("", "0", "1"):
        # a group that DistributedDataParallel had leaves threads of gloo behind (torch 2.13), and
        # an interpreter that ends beside them may be aborted by them
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
