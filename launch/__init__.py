"""Commands: prepare, train, eval, verify and others."""

import os
import signal
import sys
from typing import Any, NoReturn


def end_at_once(*_: object) -> NoReturn:
    """Ends an interrupted command where nothing is left to be tidied up, without a traceback."""
    os.write(2, b"error: interrupted\n")
    os._exit(128 + signal.SIGINT)


def report_uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Ends a command that is interrupted while it imports packages; else shows the traceback."""
    if kind is KeyboardInterrupt:
        end_at_once()
    sys.__excepthook__(kind, error, trace)


sys.excepthook = report_uncaught
