"""What the programs have in common: flags, and errors as one line with exit code 2."""

import argparse
import functools
import importlib
import importlib.util
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, TypeVar

from mom_jax.fields import ConfigError
from train.config import Config
from train.flags.experiments import find_experiment
from train.process import interrupts, streams
from train.steps.memory import keep_freed_memory

T = TypeVar("T")


def run_program(main: Callable[[], int]) -> None:
    """Ends the process with main's exit code: 2 and one line for whatever is wrong with what the program was given, 130
    for Ctrl-C, and one line for an error that has an `exit_code` of its own."""
    prepare_process()
    at_once = False  # without Python's own end, which would wait for what goes on, or abort
    try:
        code = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stderr.flush()
        interrupts.say()
        code = 130
        at_once = interrupts.computes()
    except BrokenPipeError:  # the reader of a pipe has left: not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as error:
        said = complaint(error)
        if said is None:
            raise
        print(f"error: {called(said)}", file=sys.stderr)
        code = getattr(error, "exit_code", 2)
        at_once = getattr(error, "others_go_on", False)
    if at_once:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def prepare_process() -> None:
    """What a program sets for all of its process."""
    streams.secure()
    keep_freed_memory()
    # Where orbax fails to read or write, its tasks and threads repeat that one by one, with stack traces.
    for name in ("asyncio", "absl"):
        logging.getLogger(name).addFilter(_without_trace)
    sys.unraisablehook = _unraisable
    interrupts.listen()


def _without_trace(record: logging.LogRecord) -> bool:
    return not record.exc_info


def _unraisable(what: Any) -> None:
    """For errors that Python ignores; Ctrl-C is none. Tensorstore tells tasks that a write has failed when nobody waits
    for them any more; what comes of that is not to be seen."""
    if what.exc_type is KeyboardInterrupt:
        interrupts.swallowed()
    elif str(what.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(what)


# What pathlib raises for ~NAME of nobody, and for links that lead in a circle.
_NO_PLACE = ("Could not determine home directory", "Symlink loop from")


def complaint(error: Exception) -> str | None:
    """What to tell the user of an error that is not the program's: one line, which cannot steer the terminal. None for
    others."""
    if isinstance(error, ConfigError) or hasattr(error, "exit_code"):
        text = str(error)
    elif isinstance(error, OSError):
        place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        missing = isinstance(error, FileNotFoundError)
        text = f"{place}{'no such file' if missing else f'cannot be read or written ({error.strerror or error})'}"
    elif isinstance(error, RuntimeError) and str(error).startswith(_NO_PLACE):
        text = f"a path leads nowhere ({str(error).rstrip('.')})"
    elif isinstance(error, MemoryError | RecursionError):
        text = f"there is not enough memory for it ({type(error).__name__}: {error})"
    elif isinstance(error, UnicodeError):
        text = f"a text is not UTF-8 ({error})"
    elif type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error):
        text = f"there is not enough memory for it ({str(error).splitlines()[0]})"
    else:
        return None
    return in_one_line(text)


def in_one_line(text: str) -> str:
    """A text that may be a stranger's, as one line that cannot steer the terminal."""
    line = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in line)


class Parser(argparse.ArgumentParser):
    """`argparse`, whose complaints are ours."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (all flags: {self.prog} --help)")


def notify(text: str) -> None:
    """To stderr at once: what is no result."""
    print(text, file=sys.stderr, flush=True)


def called(text: str) -> str:
    """A text that names programs, with the names by which the user knows them: `python -m train.evaluate`, or, under
    the command `mom`, `mom evaluate`."""
    if not sys.argv[0].startswith("mom "):
        return text
    return re.sub(r"python -m (train|configs)\.", "mom ", text.replace("python -m train.main", "mom train"))


def import_modules(names: Sequence[str]) -> None:
    """Imports what the user has named, modules or Python files: code of his own that registers routers, which a
    checkpoint only names. Raises ConfigError for what cannot be imported."""
    for name in names:
        if name.endswith(".py"):
            if not Path(name).is_file():
                raise ConfigError(f"import={name!r}: no such file")
            file = Path(name)
            module, execute = _from_file(file, file.stem, f"import={name!r}")
            # By its name, so that it is the same module for whoever imports it by that.
            known = sys.modules.setdefault(module.__name__, module)
            if known is module:
                _run(execute, f"import={name!r}", file)
            elif (other := getattr(known, "__file__", None)) is None or Path(other).resolve() != file.resolve():
                raise ConfigError(f"import={name!r}: there is another module {module.__name__!r}; rename the file")
        else:
            _run(functools.partial(importlib.import_module, name), f"import={name!r}", None)


def _from_file(file: Path, name: str, what: str) -> tuple[ModuleType, Callable[[], None]]:
    """(the module of a Python file, which fills it)."""
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{what}: must be a Python file")
    module = importlib.util.module_from_spec(spec)
    return module, functools.partial(spec.loader.exec_module, module)


def _run(users_code: Callable[[], Any], what: str, file: Path | None) -> Any:
    """Runs code of the user's, of one file if he has named it. Raises ConfigError with the line of a mistake in it."""
    try:
        return users_code()
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from error
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if file is not None and Path(frame.filename) == file.absolute()]
        line = getattr(error, "lineno", None) or (own or frames)[-1].lineno
        raise ConfigError(f"{what}, line {line}: {type(error).__name__}: {error}") from error


def load_config(name: str) -> Config:
    """`get_config()` of a Python file, or of the configuration of that name. Raises ConfigError where there is none."""
    return load_from(name, "get_config", Config, field="config")


def load_from(path: str, function: str, kind: type[T], *, field: str) -> T:
    """What a function of a Python file, or of one that comes with mom_jax, returns, which must be a `kind`. Raises
    ConfigError naming `field`."""
    file = find_experiment(path, function, field)
    module, execute = _from_file(file, "experiment", f"{field}={path!r}")
    full = f"{kind.__module__}.{kind.__name__}"

    def given() -> Any:
        execute()
        get = getattr(module, function, None)
        if get is None:
            raise ConfigError(f"must define {function}() -> {full}")
        return get()

    result = _run(given, f"{field}={path!r}", file)
    if not isinstance(result, kind):
        raise ConfigError(f"{field}={path!r}: {function}() must return a {full}, not {type(result).__name__}")
    return result


def add_process_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say which of several processes this one is; `train.training.processes.join` reads them."""
    group = parser.add_argument_group("several processes (one for each host, or for each GPU)")
    text = "one of several processes, as the environment says: a TPU pod slice, Slurm (automatic under srun), Open MPI"
    group.add_argument("--distributed", action="store_true", help=text)
    group.add_argument("--coordinator", metavar="HOST:PORT", help="the address of process 0, instead of --distributed")
    group.add_argument("--processes", type=int, metavar="N", help="how many processes there are; with --coordinator")
    group.add_argument("--process", type=int, metavar="I", help="which one this is, from 0; with --coordinator")
    text = "wait so long for all processes to start (default: %(default)s)"
    group.add_argument("--join-timeout", type=int, default=300, metavar="SECONDS", help=text)
