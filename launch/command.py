"""Shared by all commands: flags, and errors that a user can fix as one line, not a traceback."""

import ast
import importlib.machinery
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import ml_collections
from absl import app, flags
from absl import logging as absl_logging

from data_pipelines.errors import InputError, Preempted, UserError, is_out_of_memory
from data_pipelines.io import remote
from data_pipelines.io.terminal import printable
from launch import end_at_once, end_others
from star_jax.config import Config, with_values
from star_jax.config.checks import unknown, values_of

STARTED = time.monotonic()  # commands import this module before JAX
flags.disclaim_key_flags()  # flags defined here belong to the commands, whose --help lists them
FIXABLE = (UserError, OSError)  # any other error shows its traceback


def run(main: Callable[..., None], *, takes_arguments: bool = False) -> None:
    """Parses the flags and runs `main`; `--verbosity=1` adds the traceback to an error's line.

    Args:
      main: what the command does; takes the positional arguments, if there may be any.
      takes_arguments: whether there may be positional arguments.
    """
    if sys.getfilesystemencoding() != "utf-8":  # non-ASCII file names could not be read
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])

    def guarded(arguments: Sequence[str]) -> None:
        if len(arguments) > 1 and not takes_arguments:
            fail(f"unexpected argument {arguments[1]!r}; see --help", 2)
        try:
            main(*arguments[1:])
        except Preempted:  # not 0, so that no scheduler considers the run finished
            sys.exit(128 + signal.SIGTERM)
        except Exception as error:
            if not isinstance(error, FIXABLE) and not is_out_of_memory(error):
                raise
            if absl_logging.level_debug():
                traceback.print_exc()
            message = " ".join(str(error).split())
            fail(message if isinstance(error, FIXABLE) else f"out of memory: {message[:300]}", 1)

    absl_logging.set_verbosity(absl_logging.WARNING)  # hides what the libraries log
    logging.getLogger("star_jax").setLevel(logging.INFO)
    absl_logging.get_absl_handler().addFilter(is_for_the_user)
    threading.excepthook = report_thread
    sys.unraisablehook = report_unraisable
    try:
        app.run(guarded, flags_parser=parse_flags)
    except KeyboardInterrupt:
        fail("interrupted", 128 + signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, end_at_once)  # what is left waits for threads only


def parse_flags(arguments: list[str]) -> list[str]:
    """Parses the flags; an error is one line that names the flag."""
    try:
        if "config" in flags.FLAGS:
            arguments, CONFIG_FILE.overrides = split_overrides(arguments)
        return flags.FLAGS(arguments)
    except flags.Error as error:
        fail(explain(str(error).partition("\n")[0]), 2)
    except SystemExit as ended:  # absl ends with 1 after --help
        sys.exit(0 if ended.code == 1 else ended.code)


def define_required(name: str, description: str) -> flags.FlagHolder[str]:
    """Defines a text flag that must be given, and says so in its help."""
    return flags.DEFINE_string(name, None, f"{description} Required.", required=True)


class PathParser(flags.ArgumentParser[str]):
    """A path in which a leading `~` is the home directory."""

    def __init__(self, addresses: bool):
        """Stores whether the path may be a URL."""
        self._addresses = addresses

    def parse(self, path: str) -> str:
        """Returns the path; raises an InputError, which names the flag, as `remote.local` does."""
        return remote.expand(path) if self._addresses else remote.local(path)


def define_path(
    name: str,
    default: str | None,
    description: str,
    *,
    addresses: bool = False,
    required: bool = False,
) -> flags.FlagHolder[str]:
    """Defines a flag that takes a path.

    Args:
      name: of the flag.
      default: its value if it is not given.
      description: for its help.
      addresses: whether the path may be a URL, gs://bucket/folder.
      required: whether the flag must be given, which its help then says.
    """
    return flags.DEFINE(
        PathParser(addresses),
        name,
        default,
        f"{description} Required." if required else description,
        serializer=flags.ArgumentSerializer(),
        required=required,
    )


def either(first: flags.FlagHolder[str], second: flags.FlagHolder[str]) -> Any:
    """Returns the value of whichever of two flags is given.

    Raises:
      InputError: both are given or neither is.
    """
    given = [flag.value for flag in (first, second) if flag.value]
    if len(given) != 1:
        raise InputError(f"pass either --{first.name} or --{second.name}")
    return given[0]


def define_checkpoint(
    alternative: str = "",
) -> tuple[flags.FlagHolder[str], flags.FlagHolder[str], flags.FlagHolder[list[str]]]:
    """Defines the flags `--workdir` and `--checkpoint`, for `either`, and `--trusted`.

    Args:
      alternative: what else `--checkpoint` may name, for its help, such as `, or a file`.
    """
    workdir = define_path(
        "workdir",
        None,
        "Folder of a run; its last checkpoint is used. This or --checkpoint.",
        addresses=True,
    )
    checkpoint = define_path(
        "checkpoint",
        None,
        f"Checkpoint to use, <workdir>/checkpoints/<step>{alternative}.",
        addresses=True,
    )
    return workdir, checkpoint, define_trusted()


def define_trusted() -> flags.FlagHolder[list[str]]:
    """Defines the flag `--trusted`: packages whose components a stored config may name."""
    return flags.DEFINE_list(
        "trusted",
        [],
        "Comma-separated packages whose components a config stored with a network may name; their "
        "code is run. By default, it may name components of this repository only.",
    )


def define_clips() -> flags.FlagHolder[str | None]:
    """Defines the flag `--clips`: which frames of a tracklet are embedded."""
    from data_pipelines import sampling  # imports NumPy, which other commands' --help need not

    return flags.DEFINE_enum(
        "clips",
        None,
        sampling.CLIPS,
        "Frames of a tracklet: see config.eval.clips; default: the config's.",
    )


def define_weights() -> flags.FlagHolder[str]:
    """Defines the flag `--weights`: which weights of a checkpoint are used."""
    return flags.DEFINE_enum(
        "weights",
        "trained",
        ["trained", "ema"],  # steps.WEIGHTS, which imports JAX
        "ema: the moving average of the weights, of a run with config.optim.ema_decay.",
    )


def require_file_name(output: str) -> None:
    """Raises an InputError if the value of `--output` names no file."""
    if not Path(output).name or output.endswith("/"):
        raise InputError(f"--output={output}: use a file name, for instance mine/star")


def define_config() -> flags.FlagHolder[Config]:
    """Defines the flag `--config`, which names a file, and `--config.KEY=VALUE`."""
    return flags.DEFINE(
        CONFIG_FILE,
        "config",
        None,
        "A file in configs/; override a value with --config.KEY=VALUE. docs/config.md lists all "
        "keys. Required.",
        required=True,
    )


class ConfigFile(flags.ArgumentParser[Config]):
    """Runs the file of `--config`; an error in it ends the command.

    Attributes:
      path: what `--config` names, `FILE` or `FILE:ARGUMENT` for `get_config`.
      overrides: the values of `--config.KEY=VALUE` by key.
    """

    path: str
    overrides: Mapping[str, Any] = {}

    def parse(self, path: str) -> Config:
        """Returns the config with the overrides."""
        self.path = path
        found = call_in_file("config", path, "get_config")
        if not isinstance(found, ml_collections.ConfigDict):
            kind = type(found).__name__
            fail(f"--config={path}: get_config() must return a ConfigDict, found {kind}", 2)
        try:
            return with_values(found, self.overrides)
        except UserError as error:
            fail(f"--config={path}: {error}", 2)


CONFIG_FILE = ConfigFile()


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Returns the arguments without `--config.KEY=VALUE`, and the values by key.

    The last value of a key counts. Ends the command if there is no such key, or if it cannot have
    the value.
    """
    others: list[str] = []
    overrides = {}
    remaining = iter(flags.FLAGS.read_flags_from_files(list(arguments), force_gnu=False))
    for argument in remaining:
        match = re.fullmatch(r"--?(?:noconfig\.([^=]+)|config\.([^=]+)(?:=(.*))?)", argument, re.S)
        if not match:
            others += [argument, *remaining] if argument == "--" else [argument]
            continue
        key, text = match[1] or match[2], match[3]
        values = values_of(key)
        if values is None:
            fail(f"{argument}: {unknown(key)}", 2)
        if match[1] or (text is None and values.include(True)):  # as of absl's boolean flags
            text = str(not match[1])
        elif text is None and (text := next(remaining, None)) is None:
            fail(f"{argument}: use {values.text}", 2)
        literal = parse_literal(text)
        fitting = [value for value in (literal, text, (literal,)) if values.include(value)]
        if not fitting:
            fail(f"--config.{key}={text}: use {values.text}", 2)
        overrides[key] = fitting[0]
    return others, overrides


def parse_literal(text: str) -> Any:
    """Returns the Python literal that a text is, or the text; `true` is True."""
    try:
        return ast.literal_eval(text.capitalize() if text in ("true", "false") else text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def call_in_file(flag: str, value: str, function: str) -> Any:
    """Runs a user's file and returns what one of its functions returns.

    An error ends the command; those of the user's code are shown with their traceback.

    Args:
      flag: name of the flag, for messages.
      value: of the flag, `FILE` or `FILE:ARGUMENT` of the function.
      function: its name.
    """
    file, *argument = value.split(":", 1)
    file = remote.expand(file)
    if not Path(file).is_file():
        fail(f"--{flag}={value}: no such file", 2)
    try:
        loader = importlib.machinery.SourceFileLoader(f"{flag}_file", file)
        module = types.ModuleType(loader.name)
        sys.modules[loader.name] = module
        loader.exec_module(module)
        found = getattr(module, function)(*argument) if hasattr(module, function) else module
    except KeyboardInterrupt:
        raise
    except SystemExit as ended:
        fail(f"--{flag}={value}: the file ends the command: SystemExit({ended.code!r})", 2)
    except BaseException as error:  # the user's code may raise anything
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename != loader.path:
            frames = frames.tb_next
        traceback.print_exception(type(error), error, frames)
        fail(f"--{flag}={value}: the file cannot be run; see its traceback above", 2)
    if found is module:
        fail(f"--{flag}={value}: the file defines no {function}()", 2)
    return found


def explain(message: str) -> str:
    """Returns the first line of an error of absl.flags, reworded for the user."""
    if match := re.fullmatch(r"flag --(\w+)=None: Flag .* must have a value.*", message):
        return f"--{match[1]} is missing; see --help"
    elif match := re.fullmatch(r"flag (--\w+)=(.*): \2: (.*)", message):  # an error of a path
        return f"{match[1]}={match[2]}: {match[3]}"
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
    end_others(message, code)
    if not absl_logging.level_debug():
        logging.disable()
        threading.excepthook = lambda _: None
        sys.unraisablehook = lambda _: None
    sys.exit(code)
