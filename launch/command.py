"""Shared by all commands: flags, and errors that a user can fix as one line, not a traceback."""

import importlib.machinery
import logging
import os
import re
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import ml_collections
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from data_pipelines.errors import InputError, UserError
from data_pipelines.io.terminal import printable
from star_jax import config

STARTED = time.monotonic()  # commands import this module before JAX
flags.disclaim_key_flags()  # flags defined here belong to the commands, whose --help lists them
FIXABLE = (UserError, OSError)  # any other error shows its traceback


def run(main: Callable[..., None], *, takes_arguments: bool = False) -> None:
    """Parses the flags and runs `main`; `--verbosity=1` adds the traceback to an error's line.

    Args:
      main: what the command does; takes the positional arguments, if there may be any.
      takes_arguments: whether there may be positional arguments.
    """
    if sys.getfilesystemencoding() != "utf-8":  # other people's file names could not be read
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])

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

    absl_logging.set_verbosity(absl_logging.WARNING)  # hides what the libraries log
    logging.getLogger("star_jax").setLevel(logging.INFO)
    absl_logging.get_absl_handler().addFilter(is_for_the_user)
    threading.excepthook = report_thread
    sys.unraisablehook = report_unraisable
    app.run(guarded, flags_parser=parse_flags)


def parse_flags(arguments: list[str]) -> list[str]:
    """Parses the flags; an error is one line that names the flag."""
    if "config" in flags.FLAGS:
        check_overrides(arguments)
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        fail(explain(str(error).partition("\n")[0]), 2)
    except SystemExit as ended:  # absl ends with 1 after --help
        sys.exit(0 if ended.code == 1 else ended.code)


def define_required(name: str, description: str) -> flags.FlagHolder[str]:
    """Defines a text flag that must be given, and says so in its help."""
    return flags.DEFINE_string(name, None, f"{description} Required.", required=True)


def either(first: flags.FlagHolder, second: flags.FlagHolder) -> Any:
    """Returns the value of whichever of two flags is given.

    Raises:
      InputError: both are given or neither is.
    """
    given = [flag.value for flag in (first, second) if flag.value]
    if len(given) != 1:
        raise InputError(f"give either --{first.name} or --{second.name}")
    return given[0]


def define_checkpoint(alternative: str = "") -> tuple[flags.FlagHolder, flags.FlagHolder]:
    """Defines the flags `--workdir` and `--checkpoint`, for `either`.

    Args:
      alternative: what else `--checkpoint` may name, for its help, such as `, or a file`.
    """
    workdir = flags.DEFINE_string(
        "workdir", None, "Folder of a run; its last checkpoint is used. This or --checkpoint."
    )
    checkpoint = flags.DEFINE_string(
        "checkpoint", None, f"One checkpoint, <workdir>/checkpoints/<step>{alternative}."
    )
    return workdir, checkpoint


def define_clips() -> flags.FlagHolder[str | None]:
    """Defines the flag `--clips`: which frames of a tracklet are embedded."""
    from data_pipelines import sampling  # imports NumPy, which other commands' --help need not

    return flags.DEFINE_enum(
        "clips",
        None,
        sampling.CLIPS,
        "Frames of a tracklet: see config.eval.clips; default: the config's.",
    )


def require_file_name(output: str) -> None:
    """Raises an InputError if the value of `--output` names no file."""
    if not Path(output).name or output.endswith("/"):
        raise InputError(f"--output={output}: give a file's name, for instance mine/star")


def define_config() -> flags.FlagHolder[ml_collections.ConfigDict]:
    """Defines the flag `--config`, which names a file, and `--config.KEY=VALUE`."""
    holder = config_flags.DEFINE_config_file(
        "config",
        None,
        "A file in configs/; override a value with --config.KEY=VALUE. docs/config.md lists all "
        "keys. Required.",
    )
    flags.FLAGS["config"].parser = ConfigFileParser()
    flags.mark_flag_as_required("config")
    return holder


class ConfigFileParser(flags.ArgumentParser):
    """Runs the file of `--config`; an error in it ends the command."""

    def parse(self, path: str) -> ml_collections.ConfigDict:
        """Returns the locked config of `FILE`, or of `FILE:ARGUMENT` for `get_config`."""
        found = call_in_file("config", path, "get_config")
        if not isinstance(found, ml_collections.ConfigDict):
            kind = type(found).__name__
            fail(f"--config={path}: get_config() must return a ConfigDict, found {kind}", 2)
        try:
            config.check_names(found)
        except UserError as error:
            fail(f"--config={path}: {error}", 2)
        return found.lock()


def call_in_file(flag: str, value: str, function: str) -> Any:
    """Runs a user's file and returns what one of its functions returns.

    An error ends the command; those of the user's code are shown with their traceback.

    Args:
      flag: name of the flag, for messages.
      value: of the flag, `FILE` or `FILE:ARGUMENT` of the function.
      function: its name.
    """
    file, *argument = value.split(":", 1)
    if not Path(file).is_file():
        fail(f"--{flag}={value}: no such file", 2)
    try:
        loader = importlib.machinery.SourceFileLoader(f"{flag}_file", file)
        module = types.ModuleType(loader.name)
        sys.modules[loader.name] = module
        loader.exec_module(module)
        found = getattr(module, function)(*argument) if hasattr(module, function) else module
    except Exception as error:  # the user's code may raise anything
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename != loader.path:
            frames = frames.tb_next
        traceback.print_exception(type(error), error, frames)
        fail(f"--{flag}={value}: the file cannot be run; see its traceback above", 2)
    if found is module:
        fail(f"--{flag}={value}: the file defines no {function}()", 2)
    return found


def check_overrides(arguments: Sequence[str]) -> None:
    """Ends the command if a `--config.KEY` names an unknown key."""
    for argument in arguments:
        match = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        if match and match[1] not in (*config.KEYS, *config.SECTIONS):
            fail(f"{argument}: {config.unknown(match[1])}", 2)


def explain(message: str) -> str:
    """Returns the first line of an error of absl.flags, reworded for the user."""
    if match := re.match(r"flag (--config\.([\w.]+)=.*?): ", message):
        if match[2] in config.KEYS:
            return f"{match[1]}: use {config.KEYS[match[2]].values.text}"
    elif match := re.fullmatch(r"flag --(\w+)=None: Flag .* must have a value.*", message):
        return f"--{match[1]} is missing; see --help"
    return message


def is_for_the_user(record: logging.LogRecord) -> bool:
    """Returns False for what Orbax and asyncio log about a failure, which is raised as well."""
    library = record.name == "asyncio" or f"{os.sep}orbax{os.sep}" in record.pathname
    return not library or record.levelno < logging.ERROR or absl_logging.level_debug()


def report_thread(failure: threading.ExceptHookArgs) -> None:
    """Prints a thread's OSError as one line, and any other error with its traceback."""
    if isinstance(failure.exc_value, OSError) and failure.thread is not None:
        name, error = failure.thread.name, failure.exc_value
        print(f"warning: {name}: {printable(str(error))}", file=sys.stderr)
    else:
        threading.__excepthook__(failure)


def report_unraisable(failure: Any) -> None:
    """Hides what TensorStore raises about an event loop that Orbax closed after a failure."""
    if str(failure.exc_value) != "Event loop is closed" or absl_logging.level_debug():
        sys.__unraisablehook__(failure)


def fail(message: str, code: int) -> NoReturn:
    """Ends the command with a message, and silences the threads that are still running."""
    print(f"error: {printable(message)}", file=sys.stderr)
    if not absl_logging.level_debug():
        logging.disable()
        threading.excepthook = lambda _: None
        sys.unraisablehook = lambda _: None
    sys.exit(code)
