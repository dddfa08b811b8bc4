"""Every check there is: a name, what it proves, the function that does it, and the cases it runs on. No torch here.

A check's function lives in `mxfp4_validate/checks/` and has the signature `(Context, MoeCase) -> dict[str, object]`: it returns
the metrics it measured and raises `CheckFailed` when bits are wrong. `plan` turns the catalogue into the items of one backend.
"""

from __future__ import annotations

from dataclasses import dataclass

from mxfp4_validate.cases import SHAPES, TOKEN_COUNTS, MoeCase, Routing


@dataclass(frozen=True)
class Check:
    """One thing that is asserted. `target` is `module:function` under `mxfp4_validate.checks`."""

    name: str
    family: str  # layout | probe | random | determinism | metamorphic | parallel | poison
    proves: str
    target: str
    cpu_cases: tuple[MoeCase, ...]
    cuda_cases: tuple[MoeCase, ...]
    deadline_s: float = 120.0


@dataclass(frozen=True)
class Item:
    """A check on a case: what one pytest item runs."""

    check: Check
    case: MoeCase

    @property
    def item_id(self) -> str:
        return f"{self.check.name}-{self.case.case_id}"
