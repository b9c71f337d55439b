"""What all commands share: errors that a user can fix are one line, not a traceback."""

import logging
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

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


def fail(message: str, code: int) -> NoReturn:
    """Ends the command with a message."""
    print(f"error: {printable(message)}", file=sys.stderr)
    sys.exit(code)
