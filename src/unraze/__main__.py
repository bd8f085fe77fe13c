"""`unraze`, and `python -m unraze`: the command line, from its first moment.

Importing takes a tenth of a second, in which Ctrl-C is to end the program as it does later.
"""

import gc
import os
import sys

INTERRUPTED = 130  # as in unraze.cli.app, which is not imported yet


def main() -> int:
    """Runs the command line of sys.argv and returns its exit status, see `unraze.cli`."""
    try:
        from unraze.environment import are_several, keep_freed_memory

        keep_freed_memory()
        from unraze.cli import main as command_line
    except KeyboardInterrupt:
        print("unraze: error: interrupted", file=sys.stderr)
        return INTERRUPTED
    status = command_line()
    gc.freeze()  # or all of torch is looked through for garbage, which takes longer than to save
    if are_several():
        # a group that DistributedDataParallel had leaves threads of gloo behind (torch 2.13), and
        # an interpreter that ends beside them may be aborted by them
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
