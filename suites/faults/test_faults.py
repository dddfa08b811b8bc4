"""Every deliberate fault must be caught by the checks it names; the same checks pass on the unharmed twin, seed after seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mxfp4_validate import faults

if TYPE_CHECKING:
    from collections.abc import Callable

    from mxfp4_validate.fault_bench import FaultBench

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda fault: f"{fault.number}-{fault.name}")
def test_fault_is_caught(fault: faults.Fault, fault_bench: FaultBench, fault_row: Callable[[str, set[str]], None]) -> None:
    """Each named check fails on the faulty backend; a fault called indistinguishable is caught by none."""
    failed = fault_bench.failing(fault)
    fault_row(f"{fault.number}-{fault.name}", failed)
    missed = sorted(set(fault.caught_by) - failed)
    assert not missed, (
        f"{fault.number} {fault.name} ({fault.what}) survived {', '.join(missed)}; caught by: {', '.join(sorted(failed)) or 'nothing'}"
    )
    assert bool(failed) != bool(fault.indistinguishable), (
        f"{fault.name}: caught by {sorted(failed)}, said to be {fault.indistinguishable or 'caught'}"
    )


@pytest.mark.parametrize("seed", range(20))
def test_no_false_alarm(seed: int, fault_bench: FaultBench) -> None:
    """The unharmed twin passes every check of the matrix."""
    assert fault_bench.failing(None, seed) == set()
