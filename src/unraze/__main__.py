"""`unraze`, and `python -m unraze`: the command line, from its first moment.

Importing takes a tenth of a second, in which Ctrl-C is to end the program as it does later.
"""

import gc
import sys

INTERRUPTED = 130  # as in unraze.cli.app, which is not imported yet


def main() -> int:
    """Runs the command line of sys.argv and returns its exit status, see `unraze.cli`."""
    try:
        from unraze.cli import main as command_line
    except KeyboardInterrupt:
        print("unraze: error: interrupted", file=sys.stderr)
        return INTERRUPTED
    status = command_line()
    gc.freeze()  # or all of torch is looked through for garbage, which takes longer than to save
    return status


if __name__ == "__main__":
    sys.exit(main())
