"""What a run of a plan knows beside the stages' own records: one small file a fact, whole or not there, never changed."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mxfp4_validate.errors import InvalidRun, UsageError
from mxfp4_validate.plans.spec import PlanFile
from mxfp4_validate.records.durable import publish
from mxfp4_validate.records.store import now

_KEY = re.compile(r"[a-z0-9._~-]{1,120}")


class Journal:
    """Facts of one run, `FOLDER/journal/KEY.json`. A fact is durable when `add` returns."""

    def __init__(self, out: Path) -> None:
        self._folder = out / "journal"

    def begin(self, plan: PlanFile) -> None:
        """Take the plan down, or refuse to go on with another one, naming what differs."""
        known = self.get("plan")
        if known is None:
            self.add("plan", {"name": plan.name, "sha256": plan.sha256, "plan": plan.decided()})
        elif known["sha256"] != plan.sha256:
            wrong = "; ".join(_differences(known["plan"], plan.decided()))
            raise UsageError(f"--out {self._folder.parent} holds a run of another plan ({wrong}); give that plan, or another folder")

    def add(self, key: str, value: dict[str, Any]) -> None:
        """Keep a fact; a second one of the same key is refused."""
        assert _KEY.fullmatch(key), key
        self._folder.mkdir(parents=True, exist_ok=True)
        body = json.dumps({"at": now(), "value": value}, sort_keys=True, allow_nan=False)
        sealed = json.dumps({"body": body, "sha256": hashlib.sha256(body.encode()).hexdigest()})
        temporary = self._folder / f"{key}.new"
        with temporary.open("w", encoding="utf-8") as file:
            file.write(sealed)
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, self._folder / f"{key}.json")

    def get(self, key: str) -> dict[str, Any] | None:
        """The fact, None if it is not known; `InvalidRun` if its file was damaged or edited."""
        path = self._folder / f"{key}.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            body = found["body"]
            if hashlib.sha256(body.encode()).hexdigest() != found["sha256"]:
                raise ValueError("its checksum does not match")
            value: dict[str, Any] = json.loads(body)["value"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidRun(f"{path} is damaged, it cannot be trusted: {error}") from error
        return value

    def all(self, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Facts whose key begins with `prefix`, by key."""
        for path in sorted(self._folder.glob(f"{prefix}*.json")):
            found = self.get(path.stem)
            if found is not None:
                yield path.stem, found


def _differences(old: Any, new: Any, at: str = "") -> list[str]:
    """Where two plans differ, a line each with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [line for key in sorted({*old, *new}) for line in _differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)]
    return [] if old == new else [f"{at}: the run has {old!r}, the plan {new!r}"]
