"""The bench: what it is asked, floors and crossovers against numbers worked out by hand, the whole verb on a CPU, its record and its section."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import html5lib
import pytest
import torch

from mxfp4_validate import cli
from mxfp4_validate.backends.base import DEFAULT_TACTIC, Tactic
from mxfp4_validate.backends.sm90_cutlass import Sm90Cutlass
from mxfp4_validate.bench import measure, seed, spec, table, timing
from mxfp4_validate.bench.crossover import advice, pairs
from mxfp4_validate.bench.floor import Peak, bytes_moved, floor_of, flop, peak_of
from mxfp4_validate.bench.record import BenchStore, read_bench
from mxfp4_validate.bench.spec import Plan, Row, parse_shape, parse_tokens, row_of
from mxfp4_validate.cases import DEEPSEEK_V4, GPT_OSS, shape_named
from mxfp4_validate.errors import InvalidRun, MxfpError, NotSupported, UsageError
from mxfp4_validate.formats.moe_weights import MoeInputs
from mxfp4_validate.layouts.prepare import Sm90Weights
from mxfp4_validate.reporting import html
from mxfp4_validate.reporting.bench_view import LABEL_STEP, bench_view
from mxfp4_validate.reporting.gates import judge
from mxfp4_validate.serving.comparison import CompareOptions
from mxfp4_validate.serving.report import gather
from tests.bench_rig import PROVENANCE, TIMES, make_bench, row

ROOT = Path(__file__).resolve().parent.parent
SIDE = ("dsv4-flash", False)


# What it is asked.


def test_shapes_by_name_by_model_and_by_numbers() -> None:
    assert parse_shape("deepseek-v4-flash") == shape_named("dsv4-flash") == parse_shape("dsv4-flash")
    custom = parse_shape("8, 256,512,2")
    assert (custom.num_experts, custom.hidden_size, custom.intermediate_size, custom.top_k) == (8, 256, 512, 2)
    assert parse_shape(custom.name) == custom, "the record keeps the name alone"
    assert parse_tokens("64,4,64") == (4, 64)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--shape", "dsv5"], "unknown shape 'dsv5'"),
        (["--shape", "1,2,3"], "--shape '1,2,3' is neither a name nor four whole numbers"),
        (["--shape", "8,100,64,2"], "hidden_size=100"),
        (["--shape", "0,64,64,0"], "E=0 must be at least 1"),
        (["--shape", "4,64,64,5"], "top_k=5"),
        (["--tokens", "4,zero"], "'zero' is not a whole number"),
        (["--tokens", "0"], "'0' is not a whole number of at least 1"),
        (["--tokens", ""], "--tokens ''"),
        (["--repeats", "0"], "--repeats 0 must be at least 1"),
        (["--warmup", "-1"], "--warmup -1 must be at least 0"),
        (["--shape", "gpt-oss-20b"], "use --shape dsv4-tiny"),
        (["--graph", "on"], "--graph on: CUDA graphs need a GPU"),
        (["--backend", "sm90-cutlass"], "times of different devices cannot be compared"),
        (["--backend", "emulate:nothing"], "unknown backend 'emulate:nothing'"),
        (["--out", str(ROOT / "pyproject.toml")], "is not a bench record"),
        (["--markdown", "/nowhere/x.sqlite"], "no bench record at"),
    ],
)
def test_bad_options_are_refused_in_one_line(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--backend", "emulate:marlin", *options]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert len(err.splitlines()) == 1, err


def test_a_plan_is_its_settings(tmp_path: Path) -> None:
    plan = Plan(("a", "b"), "cuda", (parse_shape("dsv4-flash"), parse_shape("8,64,64,2")), (4, 8), bias="both", repeats=7)
    settings = json.loads(json.dumps(plan.settings()))
    assert Plan.from_settings(settings) == plan
    assert [bias for _, bias in plan.sides()] == [False, True, False, True]
    assert [s.has_bias for s, _ in Plan(("a",), "cuda", (parse_shape("gpt-oss-20b"),), (4,)).sides()] == [True]
    settings["shapes"]["dsv4-flash"][0] = 255
    with pytest.raises(UsageError, match="another one in this version"):
        Plan.from_settings(settings)


# Floors.


def test_floors_by_hand() -> None:
    """256 experts of 3 x 4096 x 2048 codes: 12,582,912 bytes of codes and 786,432 of scales each."""
    shape = shape_named("dsv4-flash")
    assert bytes_moved(shape, 4, 24) == 24 * 13_369_344 + 4 * (2 * 4096 + 2 * 4096 + 48) == 320_929_984
    assert flop(shape, 4) == 1_207_959_552
    few = floor_of(shape, 4, 24, Peak(4.8e12, 989e12))
    assert few.memory_ms == pytest.approx(0.0668604, rel=1e-5)
    assert few.compute_ms == pytest.approx(0.00122139, rel=1e-5)
    assert (few.ms, few.bound) == (few.memory_ms, "memory")
    many = floor_of(shape, 8192, 256, Peak(4.8e12, 989e12))
    assert many.ms == pytest.approx(2.50142, rel=1e-5), "2.474e12 FLOP over 989e12"
    assert many.bound == "tensor cores"


def test_biases_are_bytes_too() -> None:
    shape = shape_named("gpt-oss-20b")
    assert bytes_moved(shape, 1, 4) == 4 * (13_219_200 + 17_280) + 2880 * 4 + 32
    assert bytes_moved(replace(shape, has_bias=False), 1, 4) == 4 * 13_219_200 + 2880 * 4 + 32


@pytest.mark.parametrize(
    ("gpu", "bandwidth"),
    [
        ("NVIDIA H100 80GB HBM3", 3.35e12),
        ("NVIDIA H100 PCIe", 2.0e12),
        ("NVIDIA H100 NVL", 3.9e12),
        ("NVIDIA H200", 4.8e12),
        ("NVIDIA GH200 480GB", 4.0e12),
        ("NVIDIA H20", 4.0e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A100-SXM4-80GB", None),
        ("cpu", None),
    ],
)
def test_peaks_by_the_drivers_name(gpu: str, bandwidth: float | None) -> None:
    found = peak_of(gpu)
    assert (found and found.bandwidth) == bandwidth


# Crossovers and advice.


def power(label: str, tokens: tuple[int, ...], factor: float, exponent: float, **more: Any) -> list[Row]:
    """A power law, a straight line on logarithmic axes."""
    return [row(label, m, factor * m**exponent, **more) for m in tokens]


def test_power_laws_cross_where_they_must() -> None:
    """0.1 M^0.5 and 0.01 M meet at M = 100, off every token count measured."""
    (pair,) = pairs(power("flat", (4, 64, 256, 1024), 0.1, 0.5) + power("steep", (4, 64, 256, 1024), 0.01, 1.0))
    (crossing,) = pair.crossings
    assert crossing.tokens == pytest.approx(100, rel=1e-9)
    assert (crossing.before, crossing.after, crossing.low, crossing.high) == ("steep", "flat", 64, 256)
    assert crossing.clear
    assert not crossing.mixed
    assert pair.ratios[4] == pytest.approx(5)
    assert pair.verdict == "flat is faster from M = 100 on (between 64 and 256)"


def test_curves_that_cross_twice_never_or_touch() -> None:
    flat = [row("flat", m, 1.0) for m in (4, 16, 64)]
    (pair,) = pairs(flat + [row("bump", m, ms) for m, ms in ((4, 0.5), (16, 2.0), (64, 0.5))])
    assert [(c.low, c.high, c.after) for c in pair.crossings] == [(4, 16, "flat"), (16, 64, "bump")]
    assert pair.crossings[0].tokens == pytest.approx(8), "half way on a logarithmic axis"
    (pair,) = pairs(flat + [row("slow", m, 2.0) for m in (4, 16, 64)])
    assert pair.crossings == ()
    assert pair.verdict == "flat is faster at every M measured, 2.00 to 2.00 times"
    (pair,) = pairs(flat + [row("touch", m, ms) for m, ms in ((4, 2.0), (16, 1.0), (64, 2.0))])
    assert pair.crossings == (), "a tie between two defeats changes nothing"
    (pair,) = pairs(flat + [row("through", m, ms) for m, ms in ((4, 2.0), (16, 1.0), (64, 0.5))])
    assert [c.tokens for c in pair.crossings] == [pytest.approx(16)]
    (pair,) = pairs([*flat, row("elsewhere", 8, 1.0)])
    assert pair.verdict == "no token count was measured with both"


def test_a_crossing_within_the_spread_says_so() -> None:
    wide = {"q1_ms": 0.5, "q3_ms": 2.0}
    rows = [row("one", 4, 1.0, **wide), row("one", 16, 1.0), row("two", 4, 1.1), row("two", 16, 0.9, mode="eager")]
    (crossing,) = pairs(rows)[0].crossings
    assert not crossing.clear
    assert crossing.mixed
    assert "within the spread, the host's time in one of them" in pairs(rows)[0].verdict


def test_advice_by_regime() -> None:
    rows = power("flat", (4, 64, 1024, 4096), 0.1, 0.5) + power("steep", (4, 64, 1024, 4096), 0.01, 1.0)
    decode, prefill = advice(rows)
    assert (decode.regime, decode.choose, decode.tokens) == ("decode", "steep", (4, 64))
    assert decode.lead == pytest.approx((5 * 1.25) ** 0.5)
    assert (prefill.choose, prefill.lead) == ("flat", pytest.approx((3.2 * 6.4) ** 0.5))
    assert decode.sentence == "decode (M = 4 to 64): steep, 2.50 times as fast as flat"
    odd = [row("usual", m, ms) for m, ms in ((4, 1.0), (16, 1.0), (64, 1.2))] + [
        row("odd", m, ms) for m, ms in ((4, 2.0), (16, 2.0), (64, 1))
    ]
    assert advice(odd)[0].exceptions == ((64, "odd"),)
    assert advice(odd)[0].sentence.endswith("; faster: odd at M = 64")


def test_advice_wants_whole_columns_and_a_difference() -> None:
    gap = [row("whole", 4, 2.0), row("whole", 16, 2.0), row("gap", 4, 1.0), row("gap", 16, None, outcome="oom")]
    assert advice(gap)[0].sentence == "decode (M = 4 to 16): whole, the only one measured"
    near = [row("one", 4, 1.0), row("two", 4, 1.001)]
    assert "equal within the spread" in advice(near)[0].sentence
    assert advice([row("none", 4, None, outcome="error")]) == ()


# The whole verb on a CPU.


def bench(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
    """Exit status and the one object of --json."""
    code = cli.main(["bench", "--json", "--shape", "4,64,64,2", "--repeats", "3", "--warmup", "1", *options])
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1, out
    return code, json.loads(out)


def test_end_to_end_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "b.sqlite"
    code, said = bench(
        capsys, "--backend", "emulate:sm90-cutlass,tests.bench_rig:Quick", "--tokens", "1,5", "--bias", "both", "--out", str(out)
    )
    assert code == 0
    assert (said["verb"], said["exit_status"], said["device"]) == ("bench", 0, "cpu")
    assert said["facts"]["device"]["clock"] == "wall clock"
    assert said["facts"]["emulate:sm90-cutlass"]["emulates"] == "sm90-cutlass"
    labels = ["emulate:sm90-cutlass", "tests.bench_rig:Quick", "tests.bench_rig:Quick tuned"]
    assert [(r["label"], r["bias"], r["tokens"]) for r in said["rows"]] == [
        (n, b, m) for b in (False, True) for m in (1, 5) for n in labels
    ]
    for found in said["rows"]:
        assert found["outcome"] == "measured"
        assert 0 < found["q1_ms"] <= found["median_ms"] <= found["q3_ms"]
        assert sorted(found["samples_ms"])[1] == pytest.approx(found["median_ms"], abs=1e-6), "three repeats, so the middle one"
        assert len(found["samples_ms"]) == 3
        assert sorted(found["beside"]) == sorted(set(labels) - {found["label"]})
        assert (found["mode"], found["eager_ms"], found["floor"]) == ("eager", None, None)
    one = [r for r in said["rows"] if r["tokens"] == 1]
    assert {r["experts_hit"] for r in one} == {2}, "top-2 of one token"
    assert {r["tactic"] for r in said["rows"]} == {"default", "found"}
    assert any("timed through `run`" in note for note in one[0]["notes"])
    assert one[1]["notes"] == []
    assert [c["bias"] for c in said["conclusions"]] == [False, True]
    assert len(said["conclusions"][0]["pairs"]) == 3
    assert cli.main(["report", str(out), "-o", str(tmp_path / "r.html")]) == 0
    assert 'id="bench"' in (tmp_path / "r.html").read_text()
    capsys.readouterr()
    again, more = bench(
        capsys, "--backend", "emulate:sm90-cutlass,tests.bench_rig:Quick", "--tokens", "1,5", "--bias", "both", "--out", str(out)
    )
    assert (again, more["rows"]) == (0, said["rows"]), "a finished bench has nothing left to measure"


def test_what_breaks_costs_itself_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A backend that ends its process loses its own rows; its neighbour is measured by itself, and says so."""
    out = tmp_path / "b.sqlite"
    code, said = bench(
        capsys, "--backend", "tests.bench_rig:Dies,tests.bench_rig:Quick", "--tuned", "off", "--tokens", "1,2,3", "--out", str(out)
    )
    assert code == 5
    got = {(r["label"].split(":")[1], r["tokens"]): r for r in said["rows"]}
    assert {key: r["outcome"] for key, r in got.items() if r["outcome"] != "measured"} == {("Dies", 2): "error", ("Dies", 3): "error"}
    assert "exited with status 7" in got["Dies", 2]["why"]
    assert got["Dies", 3]["why"].startswith("not tried after M = 2")
    assert got["Quick", 1]["beside"] == ["tests.bench_rig:Dies"]
    assert got["Quick", 3]["beside"] == []
    inputs = gather([out], CompareOptions())
    assert judge(inputs).exit_code == 5
    assert any("bench of tests.bench_rig:Dies" in what for what, _ in html.context_view.not_tested(inputs))


def test_wrong_and_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever times something else than the layer is wrong, exit status 1; what a backend refuses is unavailable and costs nothing."""
    backends = "tests.bench_rig:Liar,tests.bench_rig:Biasless"
    code, said = bench(capsys, "--backend", backends, "--tokens", "2", "--bias", "both", "--out", str(tmp_path / "b.sqlite"))
    assert code == 1
    by = {(r["backend"].split(":")[1], r["bias"]): r for r in said["rows"]}
    assert by["Liar", False]["outcome"] == "wrong"
    assert "relative L2 0.0" in by["Liar", False]["why"] or "relative L2 0.1" in by["Liar", False]["why"]
    assert by["Biasless", False]["outcome"] == "measured"
    assert (by["Biasless", True]["outcome"], by["Biasless", True]["why"]) == ("unavailable", "NotSupported: its interface takes no biases")
    gate = judge(gather([tmp_path / "b.sqlite"], CompareOptions())).gates[0]
    assert gate.outcome == "FAIL"
    assert len(gate.reasons) == 4
    code, said = bench(capsys, "--backend", "tests.bench_rig:OneActivation", "--tokens", "2", "--out", str(tmp_path / "d.sqlite"))
    assert [(r["outcome"], r["why"]) for r in said["rows"]] == [("unavailable", "NotSupported: always adds 1 to up")] * len(said["rows"])
    assert said["rows"]
    code, _ = bench(capsys, "--backend", "tests.bench_rig:Biasless", "--tokens", "2", "--bias", "both", "--out", str(tmp_path / "c.sqlite"))
    assert code == 0


def test_a_kill_keeps_what_was_measured_and_the_next_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "b.sqlite"
    asked = "bench --backend tests.bench_rig:Slow --shape dsv4-tiny --tokens 1,2,64 --repeats 20"
    options = [*asked.split(), "--out", str(out)]
    with subprocess.Popen(
        [sys.executable, "-m", "mxfp4_validate", *options], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ
    ) as run:
        assert run.stdout is not None
        while not run.stdout.readline().startswith("dsv4-tiny"):
            assert run.poll() is None, "it ended before its first row"
        run.send_signal(signal.SIGTERM)
        rest = run.stdout.read()
        assert run.wait(30) == 130
    assert "decode (M = 1" in rest, "a stopped bench still says what it has"
    kept = read_bench(out)
    assert kept.exit_status is None
    assert 1 <= len(kept.rows) < 3
    assert judge(gather([out], CompareOptions())).outcome == "INCOMPLETE"
    with pytest.raises(UsageError, match=r"another repeats, tokens"):
        BenchStore.resume(out, kept.settings | {"tokens": [1], "repeats": 21}, kept.provenance)
    assert cli.main(options) == 0
    whole = read_bench(out)
    assert [r.tokens for r in whole.rows] == [1, 2, 64]
    assert whole.rows[: len(kept.rows)] == kept.rows, "what was measured is not measured again"


def test_no_backend_can_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert cli.main(["bench", "--backend", "sm90-cutlass", "--out", str(tmp_path / "b.sqlite")]) == 2
    assert "no CUDA device is visible" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path / "b.sqlite"), "-o", str(tmp_path / "r.html")]) == 5


# What only a GPU does, with the GPU left out.


def subject(tokens: int, call: Any) -> measure.Subject:
    return measure.Subject(row("x", tokens, None, outcome="error", mode="eager"), call, torch.ones(2, 4))


def timed(monkeypatch: pytest.MonkeyPatch, found: measure.Subject, graph: str) -> Row:
    monkeypatch.setattr(timing, "_gpu_ms", lambda flush, lane: (lane.fire(), (float(lane.flushes), 5.0))[1])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    measure._lanes(found, graph, "cuda")
    flush = SimpleNamespace(ms=lambda: 0.1)
    timing.time_lanes(flush, list(found.lanes.values()), 1, 3, "cuda")  # type: ignore[arg-type]
    return measure._finished(found, ("x", "y"), flush)  # type: ignore[arg-type]


def test_a_graph_is_timed_and_must_write_its_output(monkeypatch: pytest.MonkeyPatch) -> None:
    out = torch.zeros(2, 4)

    def works() -> torch.Tensor:
        return out.fill_(1)

    monkeypatch.setattr(measure, "capture", lambda call: (SimpleNamespace(replay=works), out))
    found = timed(monkeypatch, subject(512, works), "auto")
    assert (found.outcome, found.mode, found.median_ms, found.eager_ms, found.beside) == ("measured", "graph", 1.0, 1.0, ("y",))
    monkeypatch.setattr(measure, "capture", lambda call: (SimpleNamespace(replay=lambda: None), out))
    empty = timed(monkeypatch, subject(4, works), "on")
    assert empty.outcome == "wrong", "the eager call beside it wrote the buffer, but the graph did not"


def test_what_cannot_be_captured_is_eager_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(call: Any) -> Any:
        try:
            raise RuntimeError("it synchronises\nin line 3")
        finally:
            raise RuntimeError("capture was invalidated")

    monkeypatch.setattr(measure, "capture", refuses)
    found = timed(monkeypatch, subject(4, lambda: torch.ones(2, 4)), "auto")
    assert (found.outcome, found.mode, found.eager_ms) == ("measured", "eager", None)
    assert found.why == "not captured: RuntimeError: it synchronises"


def test_long_steps_are_launched_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    found = timed(monkeypatch, subject(1024, lambda: torch.ones(2, 4)), "auto")
    assert (found.mode, found.median_ms, found.eager_ms) == ("ahead", float(timing.HEAD_START), 1.0)
    assert "longer than its head start" in found.notes[0], "5 ms of host against 12 flushes of 0.1 ms"
    assert timed(monkeypatch, subject(4, lambda: torch.ones(2, 4)), "off").why == "--graph off"


def test_lanes_are_timed_in_turn() -> None:
    """A B A B, and what comes of the warm-up is not kept."""
    fired: list[str] = []
    lanes = [timing.Lane(lambda name=name: fired.append(name)) for name in "AB"]  # type: ignore[misc]
    timing.time_lanes(timing.Flush(), lanes, 1, 2, "cpu")
    assert "".join(fired) == "ABABAB"
    assert [len(lane.samples) for lane in lanes] == [2, 2]


def test_a_broken_device_is_not_a_row() -> None:
    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        measure.attempt(broken)
    assert isinstance(measure.attempt(lambda: (_ for _ in ()).throw(NotSupported("no"))), NotSupported)


def test_the_timed_call_of_the_candidate_allocates_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashInfer replaced by a recorder: every call gets the very same tensors, and the tactic it was asked for."""
    calls: list[Any] = []

    class AutoTuner:
        def choose_one(self, op: str, runners: Any, config: Any, inputs: Any, **named: Any) -> Any:
            return runners[0], "its cache"

    def fused(*args: Any, **named: Any) -> None:
        picked = [AutoTuner().choose_one("op", ["runner"], None, [], gemm_idx=gemm)[1] for gemm in (1, 2)]
        calls.append(([*args, *named.values()], picked))
        named["output"].fill_(2)

    modules = {
        "flashinfer": {},
        "flashinfer.fused_moe": {"cutlass_fused_moe": fused},
        "flashinfer.fused_moe.core": {"ActivationType": SimpleNamespace(Swiglu=3)},
        "flashinfer.autotuner": {"AutoTuner": AutoTuner},
    }
    for name, members in modules.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    empty = torch.zeros(2, 256, 64, dtype=torch.uint8)
    scale = torch.zeros(2, 8, dtype=torch.uint8)
    prepared = Sm90Weights(empty, scale, torch.zeros(2, 128, 64, dtype=torch.uint8), scale, None, None, 96, 128, "sm90-a")
    inputs = MoeInputs(torch.ones(3, 96, dtype=torch.bfloat16), torch.zeros(3, 1, dtype=torch.int32), torch.ones(3, 1))
    for tactic, picks in ((DEFAULT_TACTIC, [-1, -1]), (Tactic("t", (4, 9)), [4, 9]), (Tactic("t", "tuned"), ["its cache"] * 2)):
        calls.clear()
        call = Sm90Cutlass().timed(prepared, inputs, DEEPSEEK_V4, tactic=tactic)
        outputs = [call(), call()]
        assert [picked for _, picked in calls] == [picks, picks]
        first, second = (args for args, _ in calls)
        assert all(a is b for a, b in zip(first, second, strict=True) if isinstance(a, torch.Tensor))
        assert first[0].shape == (3, 128), "x is padded once, beforehand"
        assert outputs[0].data_ptr() == outputs[1].data_ptr()
        assert outputs[0].shape == (3, 96)
        assert outputs[0].stride(0) == 128, "a view of the padded output, not a copy of it"
        assert bool((outputs[0] == 2).all())
    Sm90Cutlass().timed(prepared, inputs, GPT_OSS)()
    assert [float(t[0]) for t in calls[-1][0][9:12]] == pytest.approx([1.702, 1.0, 7.0])


# The record.


def test_the_record_is_what_was_measured(tmp_path: Path) -> None:
    run = read_bench(make_bench(tmp_path / "b.sqlite"))
    assert run.rows[0] == row("marlin", 4, 0.4)
    assert len(run.rows) == 15
    assert run.device == "NVIDIA H200"
    assert run.exit_status == 0
    assert run.provenance == PROVENANCE
    under = run.floor(run.rows[0])
    assert under is not None
    assert under.ms == pytest.approx(0.0668604, rel=1e-5)
    assert read_bench(make_bench(tmp_path / "c.sqlite", gpu="NVIDIA A100")).floor(run.rows[0]) is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("""UPDATE "group" SET rows = replace(rows, '0.4', '0.3') WHERE place = 0""", "group 0: its checksum does not match"),
        ("UPDATE fact SET value = replace(value, 'H200', 'H100')", "facts of 'device': its checksum does not match"),
        ("UPDATE run SET settings = replace(settings, '30', '31')", "the run's own row: its checksum does not match"),
        ("UPDATE ended SET exit_status = 1", "the run's end: its checksum does not match"),
        ("DELETE FROM run", "is damaged"),
        ("DROP TABLE fact", "is damaged"),
    ],
)
def test_an_edited_record_is_refused_by_name(tmp_path: Path, change: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_bench(tmp_path / "b.sqlite")
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(change)
    assert cli.main(["bench", "--markdown", str(path)]) == 4
    err = capsys.readouterr().err
    assert told in err
    assert str(path) in err
    assert cli.main(["report", str(path), "-o", str(tmp_path / "r.html")]) == 4
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [({}, "is damaged"), ({"tokens": 4}, "is damaged"), ({"shapes": {"dsv4-tiny": [8, 384, 384, 6]}}, "which its plan has not")],
)
def test_a_record_that_contradicts_itself(tmp_path: Path, settings: dict[str, Any], told: str) -> None:
    """Whole checksums prove that nobody changed the file, not that whoever wrote it made sense."""
    good = read_bench(make_bench(tmp_path / "good.sqlite"))
    with BenchStore.create(tmp_path / "b.sqlite", good.settings | settings if settings else {}, PROVENANCE) as store:
        store.add(0, "", good.rows[:1])
    with pytest.raises(InvalidRun, match=told):
        read_bench(tmp_path / "b.sqlite")


@pytest.mark.parametrize("keep", [0, 50, 5000])
def test_a_cut_record_is_refused(tmp_path: Path, keep: int) -> None:
    path = make_bench(tmp_path / "b.sqlite")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(MxfpError) as found:
        read_bench(path)
    assert isinstance(found.value, UsageError | InvalidRun)
    assert str(path) in str(found.value)


@pytest.mark.parametrize(
    "change", [{"outcome": "fine"}, {"median_ms": None}, {"mode": "fast"}, {"more": 1}, {"outcome": "oom"}, {"samples_ms": []}]
)
def test_rows_that_are_none(change: dict[str, Any]) -> None:
    good = json.loads(json.dumps(measure.asdict(row("marlin", 4, 0.4))))
    assert row_of(good) == row("marlin", 4, 0.4)
    with pytest.raises(ValueError, match="not a bench row"):
        row_of(good | change)


# What a reader sees.


def test_the_terminal_table(tmp_path: Path) -> None:
    extra = (row("triton-kernels", 1024, None, outcome="unavailable", why="NotSupported: always adds 1"),)
    text = table.summary(read_bench(make_bench(tmp_path / "b.sqlite", extra=extra)))
    assert "sm90-cutlass tuned is faster from M = 346 on (between 256 and 1024)" in text
    assert "prefill (M = 1024 to 8192): sm90-cutlass tuned, 1.33 times as fast as marlin" in text
    assert "0.4000 x6.0*" in text
    assert "triton-kernels m=1024: unavailable: NotSupported: always adds 1" in text
    assert table.row_line(row("marlin", 4, 0.4)).split()[:5] == ["dsv4-flash", "m=4", "marlin", "0.4000", "ms"]


def test_the_section_of_the_page(tmp_path: Path) -> None:
    inputs = gather([make_bench(tmp_path / "b.sqlite")], CompareOptions())
    judgement = judge(inputs)
    assert (judgement.outcome, judgement.gates[0].wing) == ("PASS", "bench")
    page = html.render(inputs, judgement)
    assert page == html.render(inputs, judgement), "the same record gives the same bytes"
    names = {"h": "http://www.w3.org/1999/xhtml", "s": "http://www.w3.org/2000/svg"}
    (section,) = html5lib.parse(page).findall(".//h:section[@id='bench']", names)
    text = " ".join("".join(section.itertext()).split())
    for said in ("prefill (M = 1024 to 8192): sm90-cutlass tuned", "M = 346", "\u2605 0.4000 \u00d76.0", "0.06686 (memory)"):
        assert said in text
    (plot,) = section.findall(".//s:svg", names)
    assert plot.get("role") == "img"
    groups = [g for g in plot.findall("s:g", names) if "series" in (g.get("class") or "")]
    assert len(groups) == 3
    assert len(groups[0].findall("s:path", names)) == 6, "the line, and a whisker for each of five points"
    drawn = [{child.tag.split("}")[1] for child in g.find("s:g", names) or () if not child.tag.endswith("title")} for g in groups]
    assert drawn == [{"circle"}, {"path"}, {"path"}]
    assert len(json.loads(page.split('id="records">')[1].split("</script>")[0])["benches"][0]["rows"]) == 15


def test_columns_are_told_apart_without_colour(tmp_path: Path) -> None:
    plot = bench_view(gather([make_bench(tmp_path / "b.sqlite")], CompareOptions()).benches[0], 0).sides[0].plot
    assert plot is not None
    assert [line.mark for line in plot.lines] == ["circle", "square", "triangle", "none"]
    places = sorted(line.label_y for line in plot.lines)
    assert all(b - a >= LABEL_STEP - 1e-6 for a, b in pairwise(places)), "no label covers another"
    marlin = plot.lines[0]
    assert (marlin.dots[0].x, marlin.dots[-1].x) == (0, 640)
    assert marlin.dots[0].x < marlin.dots[1].x < marlin.dots[2].x
    middle = [dot.x for dot in marlin.dots][1]
    assert middle == pytest.approx(640 * 4 / 11, abs=0.01), "64 is four doublings of eleven from 4 to 8192"
    assert marlin.dots[0].low > marlin.dots[0].y > marlin.dots[0].high, "the smaller time lies lower on the page"


def test_the_table_of_the_docs(tmp_path: Path) -> None:
    run = read_bench(make_bench(tmp_path / "b.sqlite"))
    lines = seed.markdown(run).splitlines()
    assert lines[0] == f"Record {run.id}, NVIDIA H200, torch 2.11.0; median ms of 30 calls after 5."
    assert len([x for x in lines if x.startswith("| ")]) == 1 + 24
    assert "- marlin and sm90-cutlass tuned: sm90-cutlass tuned is faster from M = 346 on (between 256 and 1024)" in lines
    (line,) = (x for x in lines if x.startswith("| 1024 | sm90-cutlass tuned"))
    assert line == (
        "| 1024 | sm90-cutlass tuned | 1.92 | 1.5 (ahead) | 1.7 | 0.78 | 2.1 (memory) | ours is without the host's time; eagerly 1.7 |"
    )
    assert next(x for x in lines if x.startswith("| 4 | sm90-cutlass tuned")).endswith("| **open** (x1.32 left) |")
    assert next(x for x in lines if x.startswith("| 16 | marlin")).endswith("| not measured | | | | |")
    memory = replace(row("marlin", 1024, 2.06 * 3.35 / 4.8), eager_ms=3.0)
    assert seed.reason(run, memory, 2.06) == "the floor here is memory, of which this GPU has 1.43 times as much"


def test_the_seed_stands_in_the_docs() -> None:
    """`docs/bench.md` holds the table of a record, or the seed's numbers until there is one."""
    text = (ROOT / "docs" / "bench.md").read_text(encoding="utf-8")
    for label, line in seed.SEED.items():
        for tokens, ms in line.items():
            assert f"| {tokens} | {label} | {ms:g} |" in text


def test_the_pure_part_imports_no_torch() -> None:
    code = "import sys, mxfp4_validate.cli_bench, mxfp4_validate.reporting.html; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    assert TIMES.keys() == seed.SEED.keys()
    assert tuple(seed.SEED["marlin"]) == spec.TOKENS
