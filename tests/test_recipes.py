"""Server recipes and published scores: read strictly, every flag known to SGLang's own parser, every band explained."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mxfp4_validate import published, serverspec
from mxfp4_validate.errors import UnknownName, UsageError
from mxfp4_validate.plans import files
from mxfp4_validate.plans.fleet import launch_of

ROOT = Path(__file__).resolve().parent.parent
WHEEL = ROOT / ".vendor" / "sglang-0.5.12.post1"
VLLM = ROOT / ".vendor" / "vllm-0.33.0"
#: What issue 7 asks for: these five, each with the three backends.
ASKED = ("gpt-oss-20b", "gpt-oss-120b", "dsv4-flash-tp4", "dsv4-flash-tp8", "dsv4-pro")
BACKENDS = {"flashinfer_mxfp4", "marlin", "triton_kernel"}
MINIMAL = """
name = "x"
engine = "sglang"
version = "1"
source = "s"
model = "m"
tp = 2
context_length = 10
command = ["{python}", "-m", "s"]
flags = ["--port", "{port}", "--json", '{"a": 1}']
health = "/health"
load_deadline = 5
[backends.b]
flags = ["--backend", "b"]
reports = "b"
"""


def parsed(tool: str, wheel: Path, lines: list[list[str]]) -> list[dict[str, Any]]:
    """What the parser of a vendored wheel makes of these command lines."""
    if not wheel.is_dir():
        pytest.fail(f"{wheel} is missing: run `python tools/vendor.py`, which fetches it")
    command = [sys.executable, "-I", str(ROOT / "tests" / tool), str(wheel)]
    done = subprocess.run(command, input=json.dumps(lines), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    answer: list[dict[str, Any]] = json.loads(done.stdout)
    return answer


def sglang(lines: list[list[str]]) -> list[dict[str, Any]]:
    return parsed("sglang_flags.py", WHEEL, lines)


def test_every_recipe_that_was_asked_is_there() -> None:
    """Five models, three backends each; what a model cannot run in that release is refused, with the reason and the way out."""
    for name in ASKED:
        recipe = serverspec.load(name)
        assert set(recipe.backends) == BACKENDS
        assert recipe.version == "0.5.12.post1"
        assert {b: r.reports for b, r in recipe.backends.items()} == {b: b for b in BACKENDS}
    with pytest.raises(UsageError, match=r"dsv4-pro cannot run backend 'triton_kernel'.*use flashinfer_mxfp4 or marlin"):
        serverspec.load("dsv4-pro").launch("triton_kernel", 30000)
    with pytest.raises(UsageError, match=r"gpt-oss-120b cannot run backend 'marlin'.*2880.*use flashinfer_mxfp4 or triton_kernel"):
        serverspec.load("gpt-oss-120b").launch("marlin", 30000)


def test_sglang_parses_every_recipe_as_meant() -> None:
    """By the server's own argument parser: names, types and choices, and the values that come out of it."""
    cases = []
    for name in serverspec.names():
        recipe = serverspec.load(name)
        if recipe.engine != "sglang":
            continue
        for backend, chosen in recipe.backends.items():
            words = [*recipe.flags, *recipe.speculative, *chosen.flags]
            for part, value in (("{model}", recipe.model), ("{tp}", str(recipe.tp)), ("{port}", "30000"), ("{host}", "127.0.0.1")):
                words = [word.replace(part, value) for word in words]
            words = [word.replace("{context_length}", str(recipe.context_length)) for word in words]
            if not chosen.unsupported:
                assert list(recipe.launch(backend, 30000).argv[len(recipe.command) :]) == words, "launch() fills in what this test does"
            cases.append((recipe, backend, words))
    assert len(cases) == len(ASKED) * len(BACKENDS)
    for (recipe, backend, words), result in zip(cases, sglang([words for *_, words in cases]), strict=True):
        assert "error" not in result, f"{recipe.name} {backend}: {result}, from {' '.join(words)}"
        values = result["values"]
        wanted = {
            "model_path": recipe.model,
            "tensor_parallel_size": recipe.tp,
            "moe_runner_backend": backend,
            "context_length": recipe.context_length,
        }
        wanted |= {"port": 30000, "trust_remote_code": False, "reasoning_parser": "gpt-oss" if "gpt-oss" in recipe.name else "deepseek-v4"}
        if recipe.speculative:
            wanted |= {"speculative_algorithm": "EAGLE", "speculative_num_steps": 3, "speculative_eagle_topk": 1}
            wanted |= {"speculative_num_draft_tokens": 4}
        assert {key: values[key] for key in wanted} == wanted, recipe.name


@pytest.mark.parametrize(("plan", "overridden"), [("sglang-tiny", {}), ("sglang-tiny-limit7", {"swiglu_limit": 7.0})])
def test_sglang_parses_the_plans_that_need_no_download(plan: str, overridden: dict[str, float]) -> None:
    """Each leg as meant, on a checkpoint that is there."""
    found = files.load(ROOT / "evals" / "plans" / f"{plan}.toml")
    launches = {leg: launch_of(leg, spec) for leg, spec in (("baseline", found.baseline), ("candidate", found.candidate))}
    results = sglang([list(launch.argv[3:]) for launch in launches.values()])
    for launch, result in zip(launches.values(), results, strict=True):
        assert "values" in result, result
        args = result["values"]
        assert (Path(args["model_path"]) / "config.json").is_file()
        assert args["moe_runner_backend"] == launch.backend
        assert args["port"] == launch.port < 55536, "sglang opens port + 10000 as well"
        assert args["disable_piecewise_cuda_graph"]
        assert args["disable_flashinfer_autotune"]
        assert json.loads(args["json_model_override_args"]) == overridden


def test_the_validation_can_fail() -> None:
    """An invented flag, a choice that there is not, a word for a number, and an abbreviation are all refused by that parser."""
    start = ["--model-path", "m"]
    wrong = [["--moe-runner-backends", "marlin"], ["--moe-runner-backend", "cutlas"], ["--tp-size", "two"], ["--reasoning-parser", "dsv4"]]
    results = sglang([start, *(start + words for words in wrong), [*start, "--moe-runner", "marlin"]])
    assert "values" in results[0], results[0]
    for words, result in zip([*wrong, ["--moe-runner"]], results[1:], strict=True):
        assert words[0] in result.get("error", "") or words[0] in str(result), f"{words} was accepted: {str(result)[:300]}"
        assert "error" in result, words


def test_vllm_parses_its_recipe_as_meant() -> None:
    """By vLLM's own parser, which can also refuse; the name that its log must hold is made of a backend that the flag chooses."""
    recipe = serverspec.load("vllm-gpt-oss-20b")
    assert VLLM.name == f"vllm-{recipe.version}"
    launches = {backend: recipe.launch(backend, 30000) for backend in recipe.backends}
    assert all(launch.argv[1:5] == ("-m", "vllm.entrypoints.cli.main", "serve", recipe.model) for launch in launches.values())
    assert '__name__ == "__main__"' in (VLLM / "vllm/entrypoints/cli/main.py").read_text()
    wrong = [["--moe-backend", "cutlas"], ["--moe-backends", "marlin"], ["--moe-back", "marlin"], ["--tensor-parallel-size", "two"]]
    results = parsed("vllm_flags.py", VLLM, [*(list(launch.argv[4:]) for launch in launches.values()), *(["m", *words] for words in wrong)])
    for backend, result in zip(launches, results, strict=False):
        assert "values" in result, f"{backend}: {result}"
        wanted = {"model_tag": recipe.model, "tensor_parallel_size": 1, "moe_backend": backend, "max_model_len": recipe.context_length}
        wanted |= {"host": "127.0.0.1", "port": 30000, "trust_remote_code": False}
        assert {key: result["values"][key] for key in wanted} == wanted
    for words, result in zip(wrong, results[len(launches) :], strict=True):
        assert words[0] in result.get("error", ""), f"{words} was accepted: {str(result)[:300]}"
    chooser = (VLLM / "vllm/model_executor/layers/fused_moe/oracle/mxfp4.py").read_text()
    assert """f"Using '{backend.value}' Mxfp4 MoE backend.\"""" in chooser
    for backend, chosen in recipe.backends.items():
        assert re.search(rf'"{backend}": \[\s*Mxfp4MoeBackend\.{chosen.reports}\b', chooser), (
            f"{backend} does not mean {chosen.reports} first"
        )
        assert re.search(rf'^    {chosen.reports} = "{chosen.reports}"', chooser, re.MULTILINE)
        assert chosen.log == f"Using '{chosen.reports}' Mxfp4 MoE backend"


def test_environment_and_log_lines_are_in_the_wheel() -> None:
    """Variables that a recipe sets and log text that it waits for stand in that release's sources."""
    declared = set(re.findall(r"^    (SGLANG_\w+) = Env", (WHEEL / "sglang/srt/environ.py").read_text(), re.MULTILINE))
    # A log message is split over source lines: the quotes and line ends between its parts go.
    texts = [re.sub(r'"\s*\n\s*f?"', "", path.read_text()) for path in (WHEEL / "sglang/srt/layers/quantization").glob("mxfp4*.py")]
    evidence = 0
    for name in ASKED:
        recipe = serverspec.load(name)
        assert set(recipe.env) | set(recipe.thinking) <= declared, name
        for backend in recipe.backends.values():
            evidence += bool(backend.log)
            assert not backend.log or any(backend.log in text for text in texts), f"{name}: no source of the wheel holds {backend.log!r}"
    assert evidence >= 6, "the DeepSeek-V4 recipes wait for a line each"


def test_launch_fills_in_the_recipe() -> None:
    recipe = serverspec.load("dsv4-flash-tp8")
    whole = recipe.launch("marlin", 31000, model="/models/flash", tp=4, python="py", extra=["--trust-remote-code"])
    assert whole.argv[:5] == ("py", "-m", "sglang.launch_server", "--model-path", "/models/flash")
    assert whole.argv[-3:] == ("--moe-runner-backend", "marlin", "--trust-remote-code")
    assert "EAGLE" in whole.argv
    assert whole.env["SGLANG_DSV4_REASONING_EFFORT"] == "max"
    plain = recipe.launch("marlin", 31000, thinking=False, speculative=False)
    assert "EAGLE" not in plain.argv
    assert "SGLANG_DEFAULT_THINKING" not in plain.env
    with pytest.raises(UsageError, match="port 0"):
        recipe.launch("marlin", 0)
    with pytest.raises(UnknownName, match="did you mean marlin"):
        recipe.launch("marlyn", 31000)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tp = 2", "tp = 2\ntensor = 1", "unknown key of .*'tensor'"),
        ("tp = 2", "", r"missing keys \['tp'\]"),
        ("tp = 2", 'tp = "2"', "tp is '2', it must be a whole number"),
        ("tp = 2", "tp = true", "tp is True"),
        ("tp = 2", "tp = 0", "tp is 0, it must be positive"),
        ('"{port}"', '"{prot}"', "unknown template.*did you mean port"),
        ('"{port}"', "30000", "holds 30000.*put it in quotes"),
        ('reports = "b"', 'reports = "b"\nreport = 1', "did you mean reports"),
        ('reports = "b"', "", r"\[backends.b\]: missing keys \['reports'\]"),
        ('name = "x"', 'name = "y"', "name is 'y', it must be the file's"),
        ('"/health"', '"health"', "must be a path"),
        ('[backends.b]\nflags = ["--backend", "b"]\nreports = "b"', "[backends]", "is empty"),
        ("tp = 2", "tp = = 2", "x.toml"),
    ],
)
def test_a_damaged_recipe_is_refused(old: str, new: str, message: str) -> None:
    assert serverspec.parse(MINIMAL, Path("x.toml")).launch("b", 7).argv[-2:] == ("--backend", "b")
    assert '{"a": 1}' in serverspec.parse(MINIMAL, Path("x.toml")).flags, "JSON is no template"
    with pytest.raises(UsageError, match=message):
        serverspec.parse(MINIMAL.replace(old, new), Path("x.toml"))


def test_names_and_files(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"did you mean .*gpt-oss-20b"):
        serverspec.load("gpt-oss-20")
    with pytest.raises(UnknownName):
        serverspec.load("../gsm8k/eval")
    with pytest.raises(UsageError, match="is not a file"):
        serverspec.load(str(tmp_path / "none.toml"))
    (tmp_path / "x.toml").write_text(MINIMAL)
    assert serverspec.load(str(tmp_path / "x.toml")).model == "m"


def test_published_bands() -> None:
    """A band covers its own rows, all usable ones of that effort and nothing else; Wilson's interval by hand for one of them."""
    found = published.anchor("openai/gpt-oss-20b", "gpqa_diamond", "low")
    assert {row.score for row in found.rows} == {56.8, 58.0, 57.51}
    assert all(found.low < row.score / 100 < found.high for row in found.rows)
    n, p, z = 198 * 8, 0.568, 2.5758293035489004
    low = (p + z * z / (2 * n) - z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5) / (1 + z * z / n)
    assert found.low == pytest.approx(low, abs=1e-12)
    flash = published.anchor("deepseek-ai/DeepSeek-V4-Flash", "gpqa_diamond", "max")
    assert not flash.low <= 0.7386 <= flash.high, "the level that the seed's reviewers rejected must not pass the anchor check"
    assert flash.low <= 0.8763 <= flash.high


def test_a_model_without_an_anchor_says_why() -> None:
    with pytest.raises(UsageError, match=r"--anchor LOW:HIGH[\s\S]*settings not stated"):
        published.anchor("deepseek-ai/DeepSeek-V4-Flash-0731", "gsm8k", "")
    with pytest.raises(UnknownName, match="gpt-oss-20b"):
        published.anchor("openai/gpt-oss-20", "gsm8k", "low")
    card = next(row for row in published.load() if not row.repeats)
    with pytest.raises(UsageError, match="states no number of samples"):
        card.band()


def test_published_rows_are_whole() -> None:
    rows = published.load()
    assert len(rows) >= 80
    for row in rows:
        assert row.unusable or row.repeats, f"{row.line()}: usable without a number of samples"
        assert row.effort in ("", "none", "low", "medium", "high", "max"), row.line()
        assert row.source in row.line()
    head = '[[score]]\nmodel = "m"\neval = "e"\nscore = 101.0\nquestions = 1\nrepeats = 1\nprotocol = "p"\nsource = "https://a"\n'
    for text, message in ((head, "score 101"), (head + "efort = 1", "did you mean effort"), ("a = 1", "nothing else")):
        with pytest.raises(UsageError, match=message):
            published.parse(text, Path("p.toml"))
    with pytest.raises(UsageError, match="must be a link"):
        published.parse(head.replace("https://a", "hearsay").replace("101.0", "50.0"), Path("p.toml"))
