"""`--checkpoint` runs the checks on the file's own weights: what is collected, that a fault there is seen, and what the messages say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch

from mxfp4_validate import catalogue
from mxfp4_validate.backends.emulate import Emulated, emulate_marlin, emulate_sm90
from mxfp4_validate.cases import MoeCase
from mxfp4_validate.checkpoints.config import LARGE, parse_case, parse_layers, read_config
from mxfp4_validate.checks import readout
from mxfp4_validate.checks.checkpoint import probe_b1
from mxfp4_validate.checks.context import Context
from mxfp4_validate.errors import CheckFailed, UsageError
from mxfp4_validate.formats.moe_weights import MoeWeights
from mxfp4_validate.selection import Source
from tests import checkpoint_rig as rig


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("kernel")
    return {"gpt-oss": rig.write_gpt_oss(base / "gpt-oss"), "dsv4": rig.write_dsv4(base / "dsv4")}


def run(*args: str, module: str = "pytest") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", module, *args], cwd=rig.ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_real_weights_pass_and_the_catalogue_is_replaced(folders: dict[str, Path]) -> None:
    """Two layers; of each: bytes, two readouts, and two probes and the twin at M = 1, 16 and 65."""
    done = run("-m", "kernel", "--backend=emulate:sm90-cutlass", f"--checkpoint={folders['dsv4']}", "--layers=0,1", "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{2 * (3 + 3 * 3)} passed" in done.stdout
    assert "dsv4+layer1" in done.stdout


@pytest.mark.parametrize("backend", [emulate_sm90, emulate_marlin])
def test_every_check_passes_on_a_layer_with_biases(folders: dict[str, Path], backend: Callable[[], Emulated]) -> None:
    """The same checks, called as the worker calls them."""
    context, shape = Context(backend(), {"checkpoint": str(folders["gpt-oss"])}), read_config(folders["gpt-oss"]).shape(1)
    for check in catalogue.checkpoint_checks([shape]):
        module, _, name = check.target.partition(":")
        for case in check.cpu_cases:
            assert getattr(import_module(f"mxfp4_validate.checks.{module}"), name)(context, case)


def test_a_fault_on_real_weights_is_seen_and_told_how_to_repeat(folders: dict[str, Path], tmp_path: Path) -> None:
    """The verb takes the folder without a `=`; the last K tile of fc2 is skipped. probe-b1 reads the first H of I units and misses it."""
    done = run(
        "kernel", "--record", str(tmp_path), "--backend", "emulate:sm90-cutlass", "--checkpoint", str(folders["gpt-oss"]), "--layers", "1",
        "--fault", "k-tail-lost-fc2", module="mxfp4_validate",
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    failed = {line.split("cutlass-")[1].split("-gpt-oss")[0] for line in done.stdout.splitlines() if line.startswith("FAILED")}
    assert " ERROR (" not in done.stdout, "a check that crashes has not seen the fault"
    assert failed == {"checkpoint-readout-fc1", "checkpoint-readout-fc2", "checkpoint-probe-b2", "checkpoint-twin"}
    assert f"--checkpoint={folders['gpt-oss']} --layers=1" in done.stdout


def test_a_wrong_byte_in_the_loader_is_seen_by_the_certificate(folders: dict[str, Path]) -> None:
    """The certificate's expectation comes from the file, so a backend that changes one scale on its way is caught on real weights."""
    config = read_config(folders["gpt-oss"])
    case = MoeCase(config.shape(0), 16)

    class Loader(type(emulate_sm90())):  # type: ignore[misc]
        wrong = False

        def load(self, weights: object) -> object:
            if not self.wrong:
                return weights
            scale = weights.w13_scale.clone()  # type: ignore[attr-defined]
            scale[:, 0, 0] += 1
            return weights.with_(w13_scale=scale)  # type: ignore[attr-defined]

    plain = emulate_sm90()
    backend = Loader(plain.name, plain.model, plain.layout)
    context = Context(backend, {"checkpoint": str(folders["gpt-oss"])})
    assert probe_b1(context, case)["certified_share"] == 1.0
    backend.wrong = True
    with pytest.raises(CheckFailed, match="probe b1 on the checkpoint's weights"):
        probe_b1(context, case)


def test_a_context_keeps_file_and_synthetic_weights_apart(folders: dict[str, Path]) -> None:
    context, shape = Context(emulate_sm90(), {"checkpoint": str(folders["gpt-oss"])}), read_config(folders["gpt-oss"]).shape(1)
    real, _ = context.layer(shape)
    assert torch.equal(real.w2, rig.layer_weights(1).w2)
    context.options = {}
    assert not torch.equal(context.layer(shape)[0].w2, real.w2)


def test_case_ids_and_layers_are_read_back(folders: dict[str, Path]) -> None:
    config = read_config(folders["dsv4"])
    for check in catalogue.checkpoint_checks([config.shape(0), config.shape(1)]):
        for case in check.cpu_cases:
            assert parse_case(case.case_id, config) == case
    assert parse_layers("1, 0,1", config) == (1, 0)
    for wrong in ("", "a", "0,-1", "0..1"):
        with pytest.raises(UsageError, match="--layers"):
            parse_layers(wrong, config)
    with pytest.raises(UsageError, match="does not read"):
        parse_case("dsv4-mini/m1/random/s0", config)


def test_a_production_layer_is_read_back_on_a_gpu_alone(folders: dict[str, Path]) -> None:
    config = read_config(folders["dsv4"])
    big = type(config)(**{**vars(config), "num_experts": LARGE // (config.hidden_size * config.intermediate_size) + 1})
    for config_, cpu in ((config, 1), (big, 0)):
        readouts = [c for c in catalogue.checkpoint_checks([config_.shape(0)]) if "readout" in c.name]
        assert [(len(c.cpu_cases), len(c.cuda_cases)) for c in readouts] == [(cpu, 1)] * 2


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--layers=0"], "add --checkpoint=DIR"),
        (["--checkpoint=no-such-folder"], "does not exist"),
        (["--checkpoint={dsv4}", "--layers=2"], "layer 2 is not in checkpoint dsv4; it has layers 0..1"),
        (["--checkpoint={dsv4}", "--case=dsv4+layer9/*"], "near: dsv4+layer0/"),
    ],
)
def test_a_wrong_request_is_a_usage_error(folders: dict[str, Path], args: list[str], says: str) -> None:
    args = [arg.format(dsv4=folders["dsv4"]) for arg in args]
    done = run("-m", "kernel", "--backend=emulate:sm90-cutlass", "--collect-only", "-q", *args)
    assert done.returncode == 4, done.stdout + done.stderr
    assert says in done.stdout + done.stderr


def test_the_record_keeps_the_name_and_not_the_path(folders: dict[str, Path]) -> None:
    source = Source(checkpoint=str(folders["dsv4"]), layers="1")
    assert source.settings() == {"checkpoint": "dsv4", "layers": "1"}
    assert source.options() == {"checkpoint": str(folders["dsv4"])}
    assert Source().settings() == Source().options() == {}


@pytest.mark.parametrize("target", ["fc1", "fc2"])
def test_every_unit_of_a_wide_layer_is_read_back(folders: dict[str, Path], target: str) -> None:
    """I = 256 is four times H = 64: a wrong scale of the last unit must show, which a single pass over H units would not see."""
    context = Context(emulate_sm90(), {"checkpoint": str(folders["gpt-oss"])})
    shape = read_config(folders["gpt-oss"]).shape(0)
    check = getattr(readout, target)
    assert check(context, MoeCase(shape, 1))
    real, _ = context.layer(shape)

    class Off(type(context.backend)):  # type: ignore[misc]
        def load(self, weights: MoeWeights) -> MoeWeights:
            name, index = ("w13_scale", (3, -1, -1)) if target == "fc1" else ("w2_scale", (3, -1, -1))
            scale = weights.tensors()[name].clone()
            scale[index] += int(torch.equal(scale, real.tensors()[name]))
            return weights.with_(**{name: scale})

    context.backend = Off("off", context.backend.rounding(), emulate_sm90().layout)
    with pytest.raises(CheckFailed, match=f"readout of {target}"):
        check(context, MoeCase(shape, 1))
