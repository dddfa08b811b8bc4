"""What a run is asked to do: backends with their devices, the items of each, and which of them the globs keep."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path

from mxfp4_validate import catalogue
from mxfp4_validate.catalogue import Check, Item
from mxfp4_validate.checkpoints.config import parse_layers, read_config
from mxfp4_validate.errors import UsageError

DEFAULT_BACKEND = "sm90-cutlass"
_HERE = Path(__file__).resolve().parent
#: Where the suites may be: inside the installed package, or beside it in a checkout.
SUITES = (_HERE / "suites", _HERE.parent / "suites")
DEFAULT_CATALOGUE = "mxfp4_validate.catalogue:CHECKS"


def split_specs(values: Iterable[str]) -> tuple[str, ...]:
    """Backends from a repeatable option whose values may be comma lists, each once and in order; the default if there are none."""
    found = dict.fromkeys(part.strip() for value in values for part in value.split(",") if part.strip())
    return tuple(found) or (DEFAULT_BACKEND,)


def any_of(globs: Iterable[str] | None) -> str | None:
    """A repeatable option of globs, or comma lists of them, as one comma list; None if it was not given."""
    return None if globs is None else ",".join(globs)


def load_checks(target: str) -> tuple[Check, ...]:
    """The checks of `module:ATTRIBUTE`."""
    module, _, attribute = target.partition(":")
    try:
        found: tuple[Check, ...] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"catalogue {target!r} cannot be imported: {error}") from error
    return found


def plan(checks: Sequence[Check], device: str) -> list[Item]:
    """The items of a device in the catalogue's order."""
    return catalogue.items(device, checks)


@dataclass(frozen=True)
class Source:
    """Where a run's checks come from: a catalogue's name, or a checkpoint's layers, which then stand in the catalogue's place."""

    catalogue: str = DEFAULT_CATALOGUE
    checkpoint: str | None = None
    layers: str | None = None

    def checks(self) -> tuple[Check, ...]:
        """`UsageError` for layers without a checkpoint, `CheckpointError` for a checkpoint that cannot be read."""
        if self.checkpoint is None:
            if self.layers is not None:
                raise UsageError(f"--layers {self.layers!r} names layers of a checkpoint; add --checkpoint=DIR")
            return load_checks(self.catalogue)
        config = read_config(Path(self.checkpoint))
        return catalogue.checkpoint_checks([config.shape(layer) for layer in parse_layers(self.layers or "0", config)])

    def options(self) -> dict[str, object]:
        """What a check is told with every request."""
        return {} if self.checkpoint is None else {"checkpoint": str(Path(self.checkpoint).resolve())}

    def settings(self) -> dict[str, object]:
        """What the record keeps: the folder's name, since its path is nobody's business."""
        return {} if self.checkpoint is None else {"checkpoint": Path(self.checkpoint).resolve().name, "layers": self.layers or "0"}

    def arguments(self) -> list[str]:
        """The same on a command line."""
        return [] if self.checkpoint is None else [f"--checkpoint={self.checkpoint}", f"--layers={self.layers or '0'}"]


@dataclass(frozen=True)
class Selection:
    """Backends (spec to device), their items, and the globs on case and check, each a comma list of which one must match."""

    devices: Mapping[str, str]
    planned: Mapping[str, Sequence[Item]]
    case: str | None
    check: str | None
    checks: Sequence[Check]
    source: Source = field(default_factory=Source)

    @classmethod
    def build(
        cls, devices: Mapping[str, str], checks: Sequence[Check], case: str | None, check: str | None, source: Source | None = None
    ) -> Selection:
        """Plans every backend; `UsageError` if a glob matches nothing or all of them together keep nothing, naming what is near."""
        chosen = cls(devices, {spec: plan(checks, device) for spec, device in devices.items()}, case, check, checks, source or Source())
        everything = [item for items in chosen.planned.values() for item in items]
        wrong = chosen._nothing(everything) if everything else ""
        if wrong:
            raise UsageError(wrong)
        return chosen

    def keeps(self, item: Item) -> bool:
        """Whether the globs leave an item in."""
        return _matches(item.case.case_id, self.case) and _matches(item.check.name, self.check)

    def family(self, spec: str, family: str) -> list[Item]:
        """All items of a backend and family, before the globs."""
        return [item for item in self.planned[spec] if item.check.family == family]

    def _nothing(self, items: Sequence[Item]) -> str:
        """What is wrong with the globs, empty if nothing is."""
        cases, checks = {item.case.case_id for item in items}, {item.check.name for item in items}
        for option, glob, names in (("--case", self.case, cases), ("--check", self.check, checks)):
            for part in _parts(glob):
                if any(_matches(name, part) for name in names):
                    continue
                near = get_close_matches(part, sorted(names), n=3, cutoff=0.3) or sorted(names)[:3]
                return f"{option} {part!r} matches none of {len(names)} names for {', '.join(self.devices)}; near: {', '.join(near)}"
        if any(self.keeps(item) for item in items):
            return ""
        return f"no item matches both --case {self.case!r} and --check {self.check!r} for {', '.join(self.devices)}"


def _parts(globs: str | None) -> list[str]:
    return [part.strip() for part in (globs or "").split(",") if part.strip()]


def _matches(name: str, globs: str | None) -> bool:
    return globs is None or any(name == glob or fnmatchcase(name, glob) for glob in _parts(globs))


def reaches_suites(paths: Sequence[Path], whole: bool) -> bool:
    """Whether files and folders that were asked for reach into the suites or, if `whole`, hold all of them."""
    holds = any(folder.is_relative_to(path) for folder in SUITES if folder.is_dir() for path in paths)
    return holds or (not whole and any(path.is_relative_to(folder) for folder in SUITES for path in paths))


def wrong_markers(expression: str, registered: Iterable[str]) -> list[str]:
    """One line for each name in a `-m` expression that is no registered marker; a misspelt one would select nothing."""
    names = sorted(set(registered))
    return [
        f"-m names {name!r}, which is no registered marker; {f'did you mean {near[0]!r}?' if near else 'known: ' + ', '.join(names)}"
        for name in marker_names(expression)
        if name not in names
        for near in [get_close_matches(name, names, n=1, cutoff=0.5)]
    ]


def marker_names(expression: str) -> list[str]:
    """The marker names of a `-m` expression, without operators and call arguments."""
    without_arguments = re.sub(r"\([^()]*=[^()]*\)", " ", expression)
    words = re.findall(r"[^\s()]+", without_arguments)
    return [word for word in dict.fromkeys(words) if word not in ("and", "or", "not", "True", "False", "None")]
