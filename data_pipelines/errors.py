"""The errors that a user can fix: commands print them as one line, any other with its traceback."""

import re


class UserError(Exception):
    """Base class: the message names the file, row or key, what was found and what to do."""


class InputError(UserError, ValueError):
    """A file, a config value or an argument that cannot be used as it is."""


class MissingPackageError(UserError, ImportError):
    """An optional package that is not installed."""


class DivergedError(UserError, FloatingPointError):
    """Training has produced numbers that are not finite."""


class OutOfMemoryError(UserError, MemoryError):
    """What was asked for needs more memory than a device or the machine has."""


class Preempted(Exception):
    """A run was interrupted by a signal and has saved its state; the same call resumes it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error of Python, NumPy or JAX says that there is not enough memory."""
    # Other resources can be exhausted, too: the size of a message, a quota.
    exhausted = re.compile(r"RESOURCE_EXHAUSTED.*(memory|allocat)|OUT_OF_MEMORY", re.I | re.S)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and bool(exhausted.search(str(error)))
    )
