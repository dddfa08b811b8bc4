"""Known failures: which backend, check, case and versions, and the upstream issue that has to be closed. Data in `waivers.toml`."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from packaging.version import InvalidVersion, Version

from mxfp4_validate.errors import UsageError

FILE = Path(__file__).with_name("waivers.toml")


@dataclass(frozen=True)
class Waiver:
    """One known failure; backend, check and case are globs, first and last versions of `distribution`, both included."""

    backend: str
    check: str
    case: str
    distribution: str
    first: str
    last: str
    issue: str
    reason: str

    def covers(self, backend: str, check: str, case_id: str, facts: Mapping[str, object]) -> bool:
        """Whether this failure of a backend with these facts (its availability's) is the known one."""
        named = any(fnmatchcase(name, self.backend) for name in (backend, str(facts.get("backend", ""))))
        if not (named and fnmatchcase(check, self.check) and fnmatchcase(case_id, self.case)):
            return False
        try:
            found = Version(Version(str(facts.get(self.distribution))).public)
        except InvalidVersion:
            return False
        return Version(self.first) <= found and Version(found.base_version) <= Version(self.last)


@functools.cache
def load(path: Path = FILE) -> tuple[Waiver, ...]:
    """All waivers; `UsageError` for a file that does not say what one needs, or binds one to no issue."""
    rows = tomllib.loads(path.read_text(encoding="utf-8")).get("waiver", [])
    try:
        found = tuple(Waiver(**row) for row in rows)
    except TypeError as error:
        raise UsageError(f"{path.name}: a [[waiver]] has exactly {', '.join(Waiver.__dataclass_fields__)} ({error})") from error
    for waiver in found:
        if not waiver.issue.startswith("https://"):
            raise UsageError(f"{path.name}: issue {waiver.issue!r} of waiver {waiver.backend} is no address; a waiver is bound to an issue")
    return found


def waiver_for(backend: str, check: str, case_id: str, facts: Mapping[str, object]) -> Waiver | None:
    """The waiver that covers this failure, if any."""
    return next((w for w in load() if w.covers(backend, check, case_id, facts)), None)
