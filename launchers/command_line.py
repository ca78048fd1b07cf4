"""What every command shares: options to a `RunConfig`, and mistakes of the user to one paragraph and exit status 2.

Nothing here imports torch: help and refusals answer at once.
"""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from types import TracebackType

from ..engine.config import RunConfig
from ..engine.config_yaml import load
from ..engine.plain import nearest
from .recipes import RECIPES

MISTAKE = 2
"""Exit status for what the user gave; 1 is for what went wrong, Python's own included."""
FAILURE = 1
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a full disk or a quota says."""
DRY_RUN = "--dry-run"
"""Of `contentv train`: dry_run.py has it."""
DEBUG_VARIABLE = "CONTENTV_DEBUG"
PACKAGE = __package__.partition(".")[0]


def call(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run a command's `main`; a ValueError that our own code raised becomes its message on stderr and status 2.

    What the machine refuses (a full disk, a file one may not read, memory) becomes a message and status 1, wherever it
    was raised. Every other exception keeps its traceback, a ValueError from inside another library included: nobody
    wrote that one for the user. With CONTENTV_DEBUG=1 all of them do.
    """
    try:
        return main(argv)
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        told = _told(error)
        if os.environ.get(DEBUG_VARIABLE) == "1" or told is None:
            raise
        tell(f"error: {told}")
        return MISTAKE if isinstance(error, ValueError) else FAILURE


def _told(error: Exception) -> str | None:
    """What a person is told of an exception; None where only its traceback says anything."""
    if isinstance(error, ValueError):
        return str(error) if _raised_here(error.__traceback__) else None
    if isinstance(error, OSError):
        names = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        # Without a name it is a library's own affair (a socket, a thread), and the traceback says more; but writing
        # into an open file names none either.
        if names or error.errno in FULL:
            return f"{names or 'writing'}: {error.strerror}: free what is missing, or give another place"
        return None
    # torch has no class of its own for the host's memory: its allocator says "can't allocate memory".
    said = str(error).strip()
    if not isinstance(error, MemoryError) and "allocate memory" not in said and "out of memory" not in said:
        return None
    return (
        f"this machine has not the memory for that ({said.splitlines()[0] if said else 'no size is known'}): take a "
        "smaller model, batch or clip, or more processes"
    )


def tell(line: str) -> None:
    """To the person who waits: on stderr, since stdout is for results."""
    print(line, file=sys.stderr, flush=True)


def parse_run(argv: Sequence[str], command: str) -> RunConfig:
    """`RECIPE [--section.key value]...` as a configuration; RECIPE may be the path of a YAML file, such as config.yaml.

    Help is printed and ends the process with status 0, an option tyro refuses with status 2.

    Raises:
        ValueError: no recipe, an unknown one, or an impossible value.
    """
    if not argv or argv[0] in ("-h", "--help"):
        if not argv:
            raise ValueError(f"no recipe was given; write {command} RECIPE, with one of {', '.join(RECIPES)}")
        print(run_help(command))
        raise SystemExit(0)
    name, *options = argv
    default = starting_point(name)
    # Only here: tyro costs a tenth of a second that other commands need not pay.
    import tyro

    return tyro.cli(
        RunConfig,
        prog=f"{command} {name}",
        description=f"Changes single values of {name}; the defaults shown are that recipe's.",
        default=default,
        args=options,
        config=(tyro.conf.FlagConversionOff,),
    )


def starting_point(name: str) -> RunConfig:
    """The configuration of a recipe, or of a YAML file where `name` is a path. Raises ValueError for neither."""
    if name in RECIPES:
        return RECIPES[name]()
    if name.endswith((".yaml", ".yml")):
        return load(name)
    if name.startswith("-"):
        raise ValueError(f"the recipe comes before the options, but {name} came first; recipes: {', '.join(RECIPES)}")
    raise ValueError(
        f"there is no recipe {name!r}; recipes: {', '.join(RECIPES)}; or give the path of a config.yaml"
        f"{nearest(name, list(RECIPES))}"
    )


def run_help(command: str) -> str:
    """Help without a recipe: what to write, and which recipes there are."""
    recipes = "\n".join(f"  {name:<12} {_first_line(recipe.__doc__)}" for name, recipe in RECIPES.items())
    return (
        f"usage: {command} RECIPE [--section.key value]...\n\n"
        f"RECIPE is a name below, or the path of a config.yaml that a run left.\n\n{recipes}\n\n"
        f"Every value can be changed, for example --trainer.max-steps 20 --optimizer.learning-rate 3e-4;\n"
        f"{command} RECIPE --help lists all of them with that recipe's values."
    )


def _first_line(docstring: str) -> str:
    return docstring.strip().splitlines()[0]


def _raised_here(traceback: TracebackType) -> bool:
    """Whether the innermost frame is this package's code."""
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = traceback.tb_frame.f_globals.get("__spec__")
    return module is not None and module.name.partition(".")[0] == PACKAGE
