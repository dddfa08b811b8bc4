"""TOML tables as dataclasses: known keys, none missing, each of its type; an error names the file, the key, what stands there and what may."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from mxfp4_validate.errors import UnknownName, UsageError

#: Annotation, as the dataclasses have it -> what a TOML value must be, what its parts must be, and its name in a message.
_KINDS: dict[str, tuple[Any, Any, str]] = {
    "str": (str, None, "a string"),
    "bool": (bool, None, "true or false"),
    "int": (int, None, "a whole number"),
    "float": ((int, float), None, "a number"),
    "tuple[str, ...]": (list, str, "a list of strings"),
    "tuple[int, ...]": (list, int, "a list of whole numbers"),
    "Mapping[str, str]": (dict, str, "a table of strings"),
}


def table(data: Mapping[str, Any], kind: type, where: str) -> dict[str, Any]:
    """The values of a TOML table for the dataclass `kind`; `X | None` takes an X, tables of other kinds are handed back as they are."""
    known = {f.name: f for f in fields(kind)}
    needed = {name for name, f in known.items() if f.default is f.default_factory}  # both are MISSING where there is no default
    if unknown := set(data) - set(known):
        raise UnknownName(f"key of {where}:", sorted(unknown)[0], known)
    if missing := needed - set(data):
        raise UsageError(f"{where}: missing keys {sorted(missing)}")
    return {name: _value(value, str(known[name].type).removesuffix(" | None"), f"{where}: {name}") for name, value in data.items()}


def _value(value: Any, kind: str, where: str) -> Any:
    types, parts, called = _KINDS.get(kind, (dict, None, "a table"))
    if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
        raise UsageError(f"{where} is {value!r}, it must be {called}")
    held = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) and parts else []
    for part in held:
        if not isinstance(part, parts) or isinstance(part, bool):
            raise UsageError(f"{where} holds {part!r}, it must be {called}" + ("; put it in quotes" if parts is str else ""))
    return tuple(value) if isinstance(value, list) else value
