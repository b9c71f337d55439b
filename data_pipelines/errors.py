"""The errors that a user can fix: commands print them as one line, any other with its traceback."""


class UserError(Exception):
    """Base class: the message names the file, row or key, what was found and what to do."""


class InputError(UserError, ValueError):
    """A file, a config value or an argument that cannot be used as it is."""


class MissingPackageError(UserError, ImportError):
    """An optional package that is not installed."""


class DivergedError(UserError, FloatingPointError):
    """Training has produced numbers that are not finite."""
