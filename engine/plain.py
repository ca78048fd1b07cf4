"""Plain values (mappings, lists, scalars of YAML or JSON) as dataclasses: every key known, every value of its type.

Messages name the source, the key and what is allowed. Imports no torch.
"""

import difflib
import math
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..parallel.reading import shown

LARGEST = 2**63 - 1
"""Of every whole number: what files, tensors and counters hold."""


def nearest(given: str, allowed: list[str]) -> str:
    """A hint such as "; did you mean trainer.max_steps?", empty where nothing is near."""
    close = difflib.get_close_matches(given[:80], allowed, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def build(kind: Any, plain: Any, key: str, source: str) -> Any:
    """`plain` as a value of type `kind`: one case for each kind of type that a configuration or a record may use.

    Raises:
        ValueError: opened by `source`; an unknown or missing key, a value of another type, or one its class refuses.
    """
    if kind in (int, str, bool):
        if type(plain) is not kind:
            raise mistake(source, key, plain, {bool: "true or false", int: "a whole number", str: "a text"}[kind])
        if kind is int and not -LARGEST <= plain <= LARGEST:
            raise mistake(source, key, plain, "below 2^63")
        return plain
    if is_dataclass(kind):
        return _dataclass(kind, plain, key, source)
    if get_origin(kind) is dict:
        if not isinstance(plain, dict):
            raise mistake(source, key, plain, "a mapping of keys to values")
        _, kind_of_value = get_args(kind)
        return {
            build(str, name, f"a key of {key}", source): build(kind_of_value, value, f"{key}.{name}", source)
            for name, value in plain.items()
        }
    if get_origin(kind) is tuple:
        return _tuple(get_args(kind), plain, key, source)
    if hasattr(kind, "_fields"):
        return kind(*_tuple(tuple(get_type_hints(kind).values()), plain, key, source))
    if get_origin(kind) is Literal:
        if not isinstance(plain, str) or plain not in get_args(kind):
            allowed = ", ".join(get_args(kind))
            raise mistake(source, key, plain, f"one of {allowed}", nearest(str(plain), get_args(kind)))
        return plain
    assert kind is float, f"{key} has the type {kind}, which has no plain form"
    return _float(plain, key, source)


def mistake(source: str, key: str, plain: Any, allowed: str, hint: str = "") -> ValueError:
    found = "nothing" if plain is None else f"{shown(plain)} ({type(plain).__name__})"
    return ValueError(f"{source}: {key} is {found}; it must be {allowed}{hint}")


def _tuple(kinds: tuple, plain: Any, key: str, source: str) -> tuple:
    if not isinstance(plain, (list, tuple)):
        raise mistake(source, key, plain, "a list")
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(plain)
    if len(kinds) != len(plain):
        raise mistake(source, key, plain, f"a list of {len(kinds)}")
    return tuple(build(kinds[index], value, f"{key}[{index}]", source) for index, value in enumerate(plain))


def _dataclass(kind: Any, plain: Any, key: str, source: str) -> Any:
    prefix = f"{key}." if key else ""
    if not isinstance(plain, dict):
        raise mistake(source, key or "the whole file", plain, "a mapping of keys to values")
    kinds, required = _fields(kind)
    unknown = [name for name in plain if name not in kinds]
    if unknown:
        name = unknown[0] if isinstance(unknown[0], str) and len(unknown[0]) <= 80 else shown(unknown[0])
        raise ValueError(
            f"{source}: unknown key {prefix}{name}; {key or 'it'} has the keys {', '.join(kinds)}: correct or "
            f"remove it{nearest(str(unknown[0]), list(kinds))}"
        )
    missing = [name for name in required if name not in plain]
    if missing:
        raise ValueError(f"{source}: the key {prefix}{missing[0]} is missing and has no default; add it")
    values = {name: build(kinds[name], value, prefix + name, source) for name, value in plain.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


@cache
def _fields(kind: Any) -> tuple[dict[str, Any], list[str]]:
    """Types of a dataclass's fields, and those without a default: a manifest has a million of one class."""
    required = [field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING]
    return get_type_hints(kind), required


def _float(plain: Any, key: str, source: str) -> float:
    # YAML 1.1 reads 1e-3 (no point) as a text; a person who writes it means the number.
    if isinstance(plain, bool) or not isinstance(plain, (int, float, str)):
        raise mistake(source, key, plain, "a number")
    try:
        number = float(plain)
    except (ValueError, OverflowError):
        raise mistake(source, key, plain, "a number") from None
    if math.isnan(number):
        raise mistake(source, key, plain, "a number")
    return number
