"""Servers as data: `evals/servers/NAME.toml` says how one is started and what it must report; this reads, checks and fills it in."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mxfp4_validate import tomldata
from mxfp4_validate.errors import UnknownName, UsageError
from mxfp4_validate.evalspec import EVALS

#: What a flag may hold in braces. Anything else in braces that is a bare word is an error, so that a typo never reaches a server.
TEMPLATES = ("python", "model", "tp", "host", "port", "context_length", "tiny")
#: The folder behind `{tiny}`: the GPT-OSS checkpoint in the package, so that an engine can be tried without a download.
TINY = Path(__file__).resolve().parent / "tiny" / "checkpoint"
HOST = "127.0.0.1"
_BRACES = re.compile(r"\{([A-Za-z_]+)\}")
_NAME = re.compile(r"^[A-Za-z0-9._-]{1,100}$")


@dataclass(frozen=True)
class Launch:
    """One server to start: everything `endpoint.launch` needs and nothing that is still to be filled in.

    Attributes:
        argv: the command, never a shell's; env: what is set on top of the inherited environment.
        health: path that answers 200 once the model is loaded; deadline: seconds until then.
        backend: the MoE backend the server must report, "" where none was asked; evidence: text its log must hold as well.
    """

    name: str
    argv: tuple[str, ...]
    port: int
    env: Mapping[str, str] = field(default_factory=dict)
    host: str = HOST
    model: str = ""
    health: str = "/health"
    deadline: float = 1800.0
    backend: str = ""
    evidence: str = ""


@dataclass(frozen=True)
class Backend:
    """One MoE backend of a recipe.

    Attributes:
        flags, env: what selects it; reports: its name in the server's info.
        log: text that the server's log holds when this backend prepared the weights, "" where the server prints none.
        unsupported: why this server cannot run this model with it, "" if it can.
    """

    flags: tuple[str, ...]
    reports: str
    env: Mapping[str, str] = field(default_factory=dict)
    log: str = ""
    unsupported: str = ""


@dataclass(frozen=True)
class Recipe:
    """How one model is served.

    Attributes:
        engine, version: the server and the release that the flags were checked against; source: where the recipe comes from.
        model: name on the Hub; tp: GPUs; context_length: tokens of prompt and answer together.
        command: how the server is started; flags: for every backend; speculative, thinking: added unless switched off.
        env: for every leg; thinking: environment that turns reasoning on and sets its effort.
        health, load_deadline: see `Launch`.
    """

    name: str
    engine: str
    version: str
    source: str
    model: str
    tp: int
    context_length: int
    command: tuple[str, ...]
    flags: tuple[str, ...]
    health: str
    load_deadline: float
    backends: Mapping[str, Backend]
    speculative: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    thinking: Mapping[str, str] = field(default_factory=dict)

    def launch(
        self, backend: str, port: int, *, model: str = "", tp: int = 0, context_length: int = 0,
        thinking: bool = True, speculative: bool = True, python: str = "", extra: Sequence[str] = (),
    ) -> Launch:  # fmt: skip
        """The recipe filled in. `model` may be a folder; `python` is the interpreter of the environment that holds the server; `extra` goes last.

        Nothing here implies `--trust-remote-code`: who wants it says so in `extra`, and the record shows it.
        """
        if backend not in self.backends:
            raise UnknownName(f"backend of server {self.name}", backend, self.backends)
        chosen = self.backends[backend]
        if chosen.unsupported:
            others = [name for name, other in self.backends.items() if not other.unsupported]
            raise UsageError(f"server {self.name} cannot run backend {backend!r}: {chosen.unsupported}; use {' or '.join(others)}")
        if not 1 <= port <= 65535:
            raise UsageError(f"port {port} of server {self.name} is not between 1 and 65535")
        values = {
            "python": python or sys.executable,
            "model": model or self.model,
            "tp": str(tp or self.tp),
            "host": HOST,
            "port": str(port),
            "tiny": str(TINY),
        }
        values["context_length"] = str(context_length or self.context_length)
        parts = (*self.command, *self.flags, *(self.speculative if speculative else ()), *chosen.flags, *extra)
        argv = filled(parts, values)
        env = {**self.env, **(self.thinking if thinking else {}), **chosen.env}
        return Launch(
            f"{self.name}-{backend}", argv, port, env, model=values["model"], health=self.health, deadline=self.load_deadline,
            backend=chosen.reports, evidence=chosen.log,
        )  # fmt: skip


def names() -> list[str]:
    """The recipes there are."""
    return sorted({path.stem for root in EVALS for path in root.glob("servers/*.toml")})


def load(name: str) -> Recipe:
    """The recipe of that name, or in that file where `name` ends in .toml; `UnknownName` with the nearest ones."""
    own = Path(name)
    if own.suffix == ".toml":
        if not own.is_file():
            raise UsageError(f"server recipe {name!r} is not a file; give a path, or one of {', '.join(names())}")
        return parse(own.read_text(encoding="utf-8"), own)
    for root in EVALS:
        path = root / "servers" / f"{name}.toml"
        if name in names() and path.is_file():
            return parse(path.read_text(encoding="utf-8"), path)
    raise UnknownName("server recipe", name, names())


def parse(text: str, where: Path) -> Recipe:
    """A recipe from the text of its file; `UsageError` names the file, the key, what is wrong with it and what may stand there."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where}: {error}") from error
    found: dict[str, Any] = _table(data, Recipe, str(where))
    if found["name"] != where.stem or not _NAME.match(found["name"]):
        raise UsageError(f"{where}: name is {found['name']!r}, it must be the file's, {where.stem!r}, in letters, digits and ._-")
    if not found["backends"]:
        raise UsageError(f"{where}: [backends] is empty; give at least one")
    if not found["health"].startswith("/"):
        raise UsageError(f"{where}: health is {found['health']!r}, it must be a path such as '/health'")
    for key in ("tp", "context_length", "load_deadline"):
        if found[key] <= 0:
            raise UsageError(f"{where}: {key} is {found[key]}, it must be positive")
    backends = {}
    for name, table in found["backends"].items():
        if not isinstance(table, dict):
            raise UsageError(f"{where}: backends.{name} is {table!r}, it must be a table [backends.{name}]")
        backends[name] = Backend(**_table(table, Backend, f"{where}: [backends.{name}]"))
    return Recipe(**{**found, "backends": backends})


def _table(data: Mapping[str, Any], kind: type, where: str) -> dict[str, Any]:
    """The table's values for the dataclass `kind`, with no template in a list that is not ours."""
    found = tomldata.table(data, kind, where)
    for key, value in found.items():
        if isinstance(value, tuple):
            check_templates(value, f"{where}: {key}")
    return found


def check_templates(parts: Sequence[str], where: str) -> None:
    """`UnknownName` for a word in braces that is no template."""
    for name in (name for part in parts for name in _BRACES.findall(part)):
        if name not in TEMPLATES:
            raise UnknownName(f"template of {where}", name, TEMPLATES)


def filled(parts: Sequence[str], values: Mapping[str, str]) -> tuple[str, ...]:
    """The parts of a command with their templates filled in."""
    return tuple(_BRACES.sub(lambda match: values[match[1]], part) for part in parts)
