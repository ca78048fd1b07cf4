"""A `RunConfig` as plain YAML and back: mappings, lists and scalars only, so any tool reads it.

A run keeps its resolved configuration as config.yaml in its folder; `contentv train PATH/config.yaml` runs it again.
"""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from ..parallel.durable import write_text
from ..parallel.reading import read_text, shown
from .config import RunConfig
from .plain import build

CONFIG_FILE = "config.yaml"
LIMIT = 2**20
"""Bytes of a configuration; a whole one has two thousand."""


class PlainLoader(yaml.SafeLoader):
    """YAML without anchors (a few lines of them can mean terabytes), tags (other types) or a key twice in a mapping."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if getattr(event, "anchor", None) is not None:
            raise yaml.YAMLError(f"anchors are not taken (&name, *name; {_place(event)}): write the value out")
        if getattr(event, "tag", None) is not None:
            raise yaml.YAMLError(f"tags are not taken ({event.tag}; {_place(event)}): write the value alone")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        names = [key.value for key in keys]
        for place, key in enumerate(keys):
            if key.value in names[:place]:
                raise yaml.YAMLError(f"the key {shown(key.value)} is there twice ({_place(key)}): leave one")
        return super().construct_mapping(node, deep)


def _place(part: Any) -> str:
    return f"line {part.start_mark.line + 1}"


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
    return build(RunConfig, plain, "", source)


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
    return from_yaml(_read(path), str(path))


def first_difference(path: Path, config: RunConfig, aside: str) -> tuple[str, Any, Any] | None:
    """The first key, such as trainer.max_steps, where a YAML file differs from `config`: (key, file's value, config's).

    The section `aside` is left out. Files of other versions are read too: a key that one side lacks is "nothing" there.
    Raises ValueError for text that is no YAML.
    """
    found = flat("", _parse(_read(path), str(path)))
    wanted = flat("", to_plain(config))
    for key in [*wanted, *found]:
        values = found.get(key, "nothing"), wanted.get(key, "nothing")
        if key.partition(".")[0] != aside and values[0] != values[1]:
            return key, *values
    return None


def flat(key: str, plain: Any) -> dict[str, Any]:
    """Every scalar and list below `plain`, by its path."""
    if not isinstance(plain, dict):
        return {key: plain}
    below = [flat(f"{key}.{name}" if key else str(name), value) for name, value in plain.items()]
    return {path: value for values in below for path, value in values.items()}


def _read(path: Path) -> str:
    try:
        return read_text(path, LIMIT)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); name a YAML file") from error
    except ValueError as error:
        raise ValueError(f"{path} is no configuration: {error}; name a YAML file") from None


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, PlainLoader)  # noqa: S506 - a SafeLoader that takes less
    # PyYAML's own constructors raise ValueError too: for 2001-99-99, or a number of 5000 digits.
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{source} is not plain YAML: {' '.join(str(error).split())}: correct it") from error
    except RecursionError:
        raise ValueError(f"{source} is not plain YAML: it is nested too deeply; write it as {CONFIG_FILE} is") from None


def save(config: RunConfig, folder: str | Path) -> Path:
    """Write config.yaml into `folder`, whole or not at all; returns its path."""
    path = Path(folder) / CONFIG_FILE
    write_text(path, to_yaml(config))
    return path
