"""A `RunConfig` as plain YAML and back: mappings, lists and scalars only, so any tool reads it.

A run keeps its resolved configuration as config.yaml in its folder; `contentv train PATH/config.yaml` runs it again.
"""

import difflib
import math
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from ..parallel.durable import write_text
from .config import RunConfig

CONFIG_FILE = "config.yaml"


def to_plain(config: Any) -> Any:
    """A configuration as nested dicts, lists and scalars, in the order of its fields."""
    if is_dataclass(config):
        return {field.name: to_plain(getattr(config, field.name)) for field in fields(config)}
    if isinstance(config, tuple):
        return [to_plain(value) for value in config]
    assert isinstance(config, (bool, int, float, str)), f"{config!r} has no plain form"
    return config


def from_plain(plain: Any, source: str = "configuration") -> RunConfig:
    """The `RunConfig` that `to_plain` describes; a key that is left out takes its default.

    `source` opens every message, for example the file's path.

    Raises:
        ValueError: an unknown or missing key, a value of the wrong type, or one that its class refuses.
    """
    return _build(RunConfig, plain, "", source)


def to_yaml(config: RunConfig) -> str:
    # Escapes instead of Unicode: PyYAML reads some characters it writes plainly (U+0085) as line ends.
    return yaml.safe_dump(to_plain(config), sort_keys=False)


def from_yaml(text: str, source: str = "configuration") -> RunConfig:
    """Reads what `to_yaml` wrote, or a person. Raises ValueError as `from_plain` does, and for text that is no YAML."""
    return from_plain(_parse(text, source), source)


def load(path: str | Path) -> RunConfig:
    """The configuration in a YAML file. Raises ValueError naming the file and what is wrong with it."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not there; name a YAML file, for example the {CONFIG_FILE} of a run")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); name a YAML file") from error
    return from_yaml(text, str(path))


def first_difference(path: Path, config: RunConfig, aside: str) -> tuple[str, Any, Any] | None:
    """The first key, such as trainer.max_steps, where a YAML file differs from `config`: (key, file's value, config's).

    The section `aside` is left out. Files of other versions are read too: a key that one side lacks is "nothing" there.
    Raises ValueError for text that is no YAML.
    """
    found = _flat("", _parse(path.read_text(encoding="utf-8"), str(path)))
    wanted = _flat("", to_plain(config))
    for key in [*wanted, *found]:
        values = found.get(key, "nothing"), wanted.get(key, "nothing")
        if key.partition(".")[0] != aside and values[0] != values[1]:
            return key, *values
    return None


def _flat(key: str, plain: Any) -> dict[str, Any]:
    """Every scalar and list below `plain`, by its path."""
    if not isinstance(plain, dict):
        return {key: plain}
    below = [_flat(f"{key}.{name}" if key else str(name), value) for name, value in plain.items()]
    return {path: value for values in below for path, value in values.items()}


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not plain YAML: {' '.join(str(error).split())}") from error


def save(config: RunConfig, folder: str | Path) -> Path:
    """Write config.yaml into `folder`, whole or not at all; returns its path."""
    path = Path(folder) / CONFIG_FILE
    write_text(path, to_yaml(config))
    return path


def nearest(given: str, allowed: list[str]) -> str:
    """A hint such as "; did you mean trainer.max_steps?", empty where nothing is near."""
    close = difflib.get_close_matches(given, allowed, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _build(kind: Any, plain: Any, key: str, source: str) -> Any:
    """`plain` as a value of type `kind`: one case for each kind of type that a configuration may use."""
    if is_dataclass(kind):
        return _build_dataclass(kind, plain, key, source)
    if get_origin(kind) is tuple:
        if not isinstance(plain, list):
            raise _mistake(source, key, plain, "a list")
        return tuple(_build(get_args(kind)[0], value, f"{key}[{index}]", source) for index, value in enumerate(plain))
    if get_origin(kind) is Literal:
        if plain not in get_args(kind):
            raise _mistake(
                source, key, plain, f"one of {', '.join(get_args(kind))}", nearest(str(plain), get_args(kind))
            )
        return plain
    if kind is float:
        return _build_float(plain, key, source)
    assert kind in (bool, int, str), f"{key} has the type {kind}, which has no plain form"
    if type(plain) is not kind:
        raise _mistake(source, key, plain, {bool: "true or false", int: "a whole number", str: "a text"}[kind])
    return plain


def _build_dataclass(kind: Any, plain: Any, key: str, source: str) -> Any:
    prefix = f"{key}." if key else ""
    if not isinstance(plain, dict):
        raise _mistake(source, key or "the whole file", plain, "a mapping of keys to values")
    kinds = get_type_hints(kind)
    unknown = [name for name in plain if name not in kinds]
    if unknown:
        raise ValueError(
            f"{source}: unknown key {prefix}{unknown[0]}; {key or 'a run'} has the keys {', '.join(kinds)}"
            f"{nearest(str(unknown[0]), list(kinds))}"
        )
    required = [field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING]
    missing = [name for name in required if name not in plain]
    if missing:
        raise ValueError(f"{source}: the key {prefix}{missing[0]} is missing and has no default; add it")
    values = {name: _build(kinds[name], value, prefix + name, source) for name, value in plain.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _build_float(plain: Any, key: str, source: str) -> float:
    # YAML 1.1 reads 1e-3 (no point) as a text; a person who writes it means the number.
    if isinstance(plain, bool) or not isinstance(plain, (int, float, str)):
        raise _mistake(source, key, plain, "a number")
    try:
        number = float(plain)
    except ValueError:
        raise _mistake(source, key, plain, "a number") from None
    if math.isnan(number):
        raise _mistake(source, key, plain, "a number")
    return number


def _mistake(source: str, key: str, plain: Any, allowed: str, hint: str = "") -> ValueError:
    found = "nothing" if plain is None else f"{plain!r} ({type(plain).__name__})"
    return ValueError(f"{source}: {key} is {found}; it must be {allowed}{hint}")
