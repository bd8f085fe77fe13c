"""The package's own errors: each says what is wrong, where, and what to do.

The command line prints the message of one of these as a single line; any other exception is a
defect of the package and keeps its traceback.
"""

__all__ = [
    "CheckpointError",
    "DataError",
    "DivergedError",
    "Elsewhere",
    "InputError",
    "UnrazeError",
    "UnreadableError",
]


class UnrazeError(Exception):
    """Base of the package's errors; ends the command line with exit status 1."""

    exit_status = 1


class InputError(UnrazeError, ValueError):
    """A value that a person gave and that will not do; exit status 2, nothing changed on disk."""

    exit_status = 2


class DataError(InputError):
    """Images that cannot be read or used as they are."""


class CheckpointError(InputError):
    """A checkpoint or run folder that is missing, damaged or of another shape."""


class UnreadableError(UnrazeError):
    """A checkpoint that could not be read this time, which says nothing of whether it is whole: the
    disk, the network or a permission failed, or memory. It is left as it is."""


class DivergedError(UnrazeError):
    """Training produced values that are not finite and could not be rescued; exit status 3."""

    exit_status = 3


class Elsewhere(UnrazeError):
    """Another rank failed, and says why; this one ends with it, in silence."""
