"""Keys of a configuration with the values that they shall take: `parallel.tensor=1,2`. Imports no torch."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .config import RunConfig
from .config_yaml import flat, from_plain, to_plain
from .plain import nearest

Grid = dict[str, tuple[str, ...]]
"""Key -> its values, as they were given."""


def parse_grid(given: Sequence[str], base: RunConfig) -> Grid:
    """`parallel.tensor=1,2` and more of them. Raises ValueError for an unknown key or no value."""
    known, grid = flat("", to_plain(base)), {}
    for text in given:
        key, _, values = text.partition("=")
        key = key.replace("-", "_")
        if key not in known or key in ("recipe", "run.folder"):
            raise ValueError(
                f"--grid {text}: there is no key {key!r}{nearest(key, list(known))}; write KEY=VALUE,VALUE"
            )
        if key in grid:
            raise ValueError(f"--grid {key} is there twice: give all its values in one, {key}=VALUE,VALUE")
        chosen = tuple(dict.fromkeys(values.split(",")))
        if not values or "" in chosen:
            raise ValueError(f"--grid {text}: values are missing; write {key}=VALUE,VALUE")
        for value in chosen:
            _typed(key, value, known[key])
        grid[key] = chosen
    return grid


def changed(config: RunConfig, values: Mapping[str, str]) -> RunConfig:
    """The configuration with some values replaced; raises ValueError where one is impossible."""
    plain = to_plain(config)
    for key, text in values.items():
        *sections, name = key.split(".")
        part = plain
        for section in sections:
            part = part[section]
        part[name] = _typed(key, text, part[name])
    return from_plain(plain, "this point")


def _typed(key: str, text: str, example: Any) -> Any:
    """The text as a value of the same type as `example`."""
    if isinstance(example, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{key} is {text}; it must be True or False")
        return text.lower() == "true"
    if isinstance(example, (int, float)):
        try:
            return type(example)(text)
        except ValueError:
            kind = "whole number" if isinstance(example, int) else "number"
            raise ValueError(f"{key} is {text}; it must be a {kind}") from None
    if not isinstance(example, str):
        raise ValueError(f"{key} holds several values, and a grid takes keys with one")
    return text


def combinations(grid: Grid) -> Iterator[dict[str, str]]:
    """Every point of the grid: key -> value."""
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))
