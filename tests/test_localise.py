"""Localisation: the layer that is broken is named, under the oracle that a reader would expect, and a legitimate other backend is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mxfp4_validate import cli


def found(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    status = cli.main(["localise", "--sequences", "3", "--json", *arguments])
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return status, answer


@pytest.mark.parametrize("backend", ["emulate:sm90-cutlass", "emulate:sm90-cutlass-b", "emulate:marlin", "emulate:triton-kernels"])
def test_a_legitimate_backend_leaves_no_oracle(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever its rounding points, and against a baseline with others."""
    status, answer = found(capsys, "--backend", backend)
    assert (status, answer["first"]) == (0, None)
    assert [layer["wrong"] for layer in answer["layers"]] == [""] * 4
    assert all(layer["tokens"] > 50 and layer["relative_l2"] > 0 for layer in answer["layers"])


@pytest.mark.parametrize(
    ("fault", "first", "oracle", "layers"),
    [
        ("layer-1-percent", 2, "twin", [2]),
        ("scale-one-layer", 2, "twin", [2]),
        ("halves-swapped", 0, "twin", [0, 1, 2, 3]),
        ("not-renormalised", 0, "routing", [0, 1, 2, 3]),
        ("scales-1-in-1000", 0, "twin", [0, 1, 2, 3]),
    ],
)
def test_a_broken_layer_is_named(fault: str, first: int, oracle: str, layers: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    """Errors of one layer are not told of the next, since each is given the baseline's inputs."""
    status, answer = found(capsys, "--backend", "emulate:sm90-cutlass", "--fault", fault)
    assert (status, answer["first"], answer["oracle"]) == (1, first, oracle)
    assert [layer["layer"] for layer in answer["layers"] if layer["wrong"]] == layers


def test_a_backend_without_declared_roundings_is_held_to_float64(capsys: pytest.CaptureFixture[str]) -> None:
    """`reference` is transformers' own module: no twin, but a layer that is off would still show."""
    status, answer = found(capsys, "--backend", "reference")
    assert status == 0
    assert all(0 < layer["relative_l2"] < 6e-3 for layer in answer["layers"])


def test_the_table_and_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["localise", "--sequences", "2", "--backend", "emulate:sm90-cutlass", "--fault", "layer-1-percent"]) == 1
    assert "layer 2 is the first, under the oracle 'twin'" in capsys.readouterr().out
    assert cli.main(["localise", "--sequences", "0"]) == 2
    assert "--sequences 0 must be at least 1" in capsys.readouterr().err
