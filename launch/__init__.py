"""Commands: prepare, train, eval, verify and others."""

import os
import signal
import sys
from typing import Any, NoReturn


def end_at_once(*_: object) -> NoReturn:
    """Ends an interrupted command where nothing is left to be tidied up, without a traceback."""
    os.write(2, b"error: interrupted\n")
    os._exit(128 + signal.SIGINT)


def end_others(failure: str, code: int) -> None:
    """Ends this process with the others of its run, if there are any."""
    processes = sys.modules.get("star_jax.distributed.processes")
    if processes is not None:
        processes.leave(failure, code)


def report_uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Shows the traceback of an error; an interruption while packages are imported has none."""
    if kind is KeyboardInterrupt:
        end_at_once()
    sys.__excepthook__(kind, error, trace)
    end_others(" ".join(f"{kind.__name__}: {error}".split()), 1)


sys.excepthook = report_uncaught
