"""Parse command lines with vLLM's own argument parser, without vLLM's dependencies, a GPU, or starting anything.

    python vllm_flags.py FOLDER < lines.json

FOLDER holds the wheel's Python sources; input and output are those of `sglang_flags.py`. The parser is built from vLLM's configuration classes
at import, so all of vLLM that they import is real, torch, transformers and pydantic too; other packages that are not installed are replaced by
stubs, for vLLM's own imports alone. The platform, which decides no flag of ours, is said to be CUDA.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from sglang_flags import check


class Anything(type):
    """A class whose every attribute is such a class."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return anything(name)

    def __iter__(cls) -> Any:
        return iter(())


def _any_schema(cls: type, source: Any, handler: Any) -> Any:
    from pydantic_core import core_schema

    return core_schema.any_schema()


def anything(name: str) -> Any:
    """A class to subclass, subscript, decorate with, call and annotate a pydantic field with."""
    return Anything(
        name,
        (),
        {
            "__init__": lambda self, *a, **k: None,
            "__call__": lambda self, *a, **k: a[0] if a and callable(a[0]) else self,
            "__getattr__": lambda self, attribute: anything(attribute),
            "__class_getitem__": classmethod(lambda cls, item: cls),
            "__init_subclass__": classmethod(lambda cls, **k: None),
            "__get_pydantic_core_schema__": classmethod(_any_schema),
        },
    )


class Stub(types.ModuleType):
    """Any public name asked of it is such a class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return anything(name)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Comes last: stubs for packages that nothing else found and that a source of vLLM's imports."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder / "vllm")
        self.stubbed: set[str] = set()

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        top = name.partition(".")[0]
        if top == "vllm" or top in sys.stdlib_module_names:
            return None
        frame = sys._getframe(1)
        while frame.f_back is not None and "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        if top not in self.stubbed and not frame.f_code.co_filename.startswith(self.folder):
            return None  # another package trying for something optional must go on without it
        self.stubbed.add(top)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__path__ = []


def build(folder: Path) -> Any:
    """vLLM's parser of `vllm serve`."""
    sys.path.insert(0, str(folder))
    sys.meta_path.append(Finder(folder))
    import vllm.platforms as platforms
    from vllm.platforms.interface import Platform, PlatformEnum

    named = {"_enum": PlatformEnum.CUDA, "device_name": "cuda", "device_type": "cuda", "dispatch_key": "CUDA", "dist_backend": "nccl"}
    platforms._current_platform = type("Cuda", (Platform,), named | {"device_control_env_var": "CUDA_VISIBLE_DEVICES"})()
    from vllm.entrypoints.common.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser(allow_abbrev=False, exit_on_error=False))


if __name__ == "__main__":
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints at import is no answer
    parser = build(Path(sys.argv[1]).resolve())
    json.dump([check(parser, line) for line in json.load(sys.stdin)], out)
