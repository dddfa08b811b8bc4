"""Parse command lines with SGLang's own argument parser, without SGLang's dependencies and without starting anything.

    python sglang_flags.py FOLDER < lines.json

FOLDER holds the unpacked wheel; the input is a JSON list of argument lists, the output a JSON list of {"values": ...} or {"error": ...}.
Run as a process of its own: `server_args` is imported for real, with its own choices and types, and every other module that it asks for
and that needs torch or a GPU is replaced by a stub. The two registries that supply choices are read from their files, without running them.
"""

from __future__ import annotations

import argparse
import ast
import decimal
import importlib.abc
import importlib.machinery
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

#: Modules of SGLang that import without anything else, and that define what the parser uses.
REAL = {"sglang.srt.server_args", "sglang.srt.environ"}
PACKAGES = {"sglang", "sglang.srt"}


class Stub(types.ModuleType):
    """Any name asked of it is a stub too; calling one gives a stub."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *a, **k: None, "__call__": lambda self, *a, **k: False})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stubs for whatever cannot be found, and for all of SGLang but `REAL`."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name in REAL:
            return None
        if name.partition(".")[0] == "sglang" and name not in PACKAGES:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def registry(path: Path, name: str) -> dict[str, None]:
    """The string keys of the dictionary assigned to `name` in that file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == name and isinstance(node.value, ast.Dict):
            return {key.value: None for key in node.value.keys if isinstance(key, ast.Constant)}
    raise SystemExit(f"{path} assigns no dictionary to {name}: the wheel has changed")


def function(path: Path, name: str) -> Any:
    """One function of a file that cannot be imported: the type of an argument."""
    found = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef) and node.name == name]
    if len(found) != 1:
        raise SystemExit(f"{path} defines {name} {len(found)} times: the wheel has changed")
    names: dict[str, Any] = {"argparse": argparse, "json": json, "re": re, "orjson": json, "Decimal": decimal.Decimal}
    exec(compile(ast.Module(body=list(found), type_ignores=[]), str(path), "exec"), names)
    return names[name]


def build(folder: Path) -> argparse.ArgumentParser:
    """SGLang's parser."""
    for name in PACKAGES:  # its own __init__ files import the whole server
        package = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = package
    sys.meta_path.insert(0, Finder())
    srt = folder / "sglang" / "srt"
    reasoning, tools, common = (
        Stub(f"sglang.srt.{name}") for name in ("parser.reasoning_parser", "function_call.function_call_parser", "utils.common")
    )
    parsers = registry(srt / "parser" / "reasoning_parser.py", "DetectorMap")
    calls = registry(srt / "function_call" / "function_call_parser.py", "ToolCallParserEnum")
    reasoning.ReasoningParser = type("ReasoningParser", (), {"DetectorMap": parsers})
    tools.FunctionCallParser = type("FunctionCallParser", (), {"ToolCallParserEnum": calls})
    common.SUPPORTED_LORA_TARGET_MODULES, common.LORA_TARGET_ALL_MODULES = [], "all"  # choices of an argument that no recipe has
    for name in ("human_readable_int", "nullable_str", "json_list_type"):
        setattr(common, name, function(srt / "utils" / "common.py", name))
    sys.modules |= {module.__name__: module for module in (reasoning, tools, common)}
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    ServerArgs.add_cli_args(parser)
    return parser


def check(parser: argparse.ArgumentParser, line: list[str]) -> dict[str, Any]:
    """What the parser makes of one command line."""
    try:
        values, unknown = parser.parse_known_args(line)
    except (argparse.ArgumentError, SystemExit) as error:
        return {"error": str(error)}
    if unknown:
        return {"error": f"unknown arguments {unknown}"}
    return {"values": {k: v for k, v in vars(values).items() if isinstance(v, str | int | float | bool | None)}}


if __name__ == "__main__":
    ours = build(Path(sys.argv[1]))
    json.dump([check(ours, line) for line in json.load(sys.stdin)], sys.stdout)
