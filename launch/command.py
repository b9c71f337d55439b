"""What all commands share: errors that a user can fix are one line, not a traceback."""

import logging
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags
from absl import logging as absl_logging

from data_pipelines.errors import UserError
from data_pipelines.terminal import printable

STARTED = time.monotonic()  # commands import this module first
FIXABLE = (UserError, OSError)  # of anything else, the traceback says where it comes from


def run(main: Callable[..., None], *, takes_arguments: bool = False) -> None:
    """Parses the flags and runs `main`; `--verbosity=1` adds the traceback to an error's line.

    Args:
      main: what the command does; takes the arguments that are no flags, if there may be any.
      takes_arguments: whether there may be.
    """

    def guarded(arguments: Sequence[str]) -> None:
        if len(arguments) > 1 and not takes_arguments:
            fail(f"unexpected argument {arguments[1]!r}; see --help", 2)
        try:
            main(*arguments[1:])
        except KeyboardInterrupt:
            fail("interrupted", 130)
        except FIXABLE as error:
            if absl_logging.level_debug():
                traceback.print_exc()
            fail(" ".join(str(error).split()), 1)

    absl_logging.set_verbosity(absl_logging.WARNING)  # the libraries' news are not the user's
    logging.getLogger("star_jax").setLevel(logging.INFO)
    absl_logging.get_absl_handler().addFilter(is_for_the_user)
    threading.excepthook = report_thread
    sys.unraisablehook = report_unraisable
    app.run(guarded, flags_parser=parse_flags)


def parse_flags(arguments: list[str]) -> list[str]:
    """Parses the flags; what is wrong with them is one line that names it."""
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        fail(str(error).partition("\n")[0], 2)
    except (AttributeError, KeyError) as error:  # of ml_collections; it names a part of the key
        name = next(filter(None, re.split(r"\W+", str(error))))
        given = next((x for x in arguments if name in x.partition("=")[0]), name)
        fail(f"{given}: the config has no key {name!r}; see the file of --config", 2)


def is_for_the_user(record: logging.LogRecord) -> bool:
    """Leaves out what Orbax and asyncio log of a failure, which is raised as well."""
    library = record.name == "asyncio" or f"{os.sep}orbax{os.sep}" in record.pathname
    return not library or record.levelno < logging.ERROR or absl_logging.level_debug()


def report_thread(failure: threading.ExceptHookArgs) -> None:
    """Prints what a thread could not write or read as one line; of other errors the traceback."""
    if isinstance(failure.exc_value, OSError) and failure.thread is not None:
        name, error = failure.thread.name, failure.exc_value
        print(f"warning: {name}: {printable(str(error))}", file=sys.stderr)
    else:
        threading.__excepthook__(failure)


def report_unraisable(failure: Any) -> None:
    """Leaves out what TensorStore says to a loop that Orbax has closed after a failure."""
    if str(failure.exc_value) != "Event loop is closed" or absl_logging.level_debug():
        sys.__unraisablehook__(failure)


def fail(message: str, code: int) -> NoReturn:
    """Ends the command with a message, and without those of threads that it leaves behind."""
    print(f"error: {printable(message)}", file=sys.stderr)
    if not absl_logging.level_debug():
        logging.disable()
        threading.excepthook = lambda _: None
        sys.unraisablehook = lambda _: None
    sys.exit(code)
