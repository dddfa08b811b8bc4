"""Rows I, S and the remaining C of the fault list: what is compared is what was meant, and no key, path or escape gets out."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mxfp4_validate import cli
from mxfp4_validate.endpoint.address import Secret, parse_address
from mxfp4_validate.errors import InvalidRun, UsageError
from mxfp4_validate.records.evals import EvalStore
from mxfp4_validate.serving.lock import check_folder
from mxfp4_validate.serving.names import run_name, shown
from tests.fault_server import Act, FaultServer, Request, answer, status

ROOT = Path(__file__).resolve().parent.parent
KEY = "sentinel/key+A7f93b"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(json.dumps({"question": f"What is {i} plus one?", "answer": f"#### {i + 1}"}) for i in range(8)))
    return path


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer(lambda n, request: answer(rf"\boxed{{{re.search('is ([0-9]+) plus', request.text)[1]}}}")) as found:  # type: ignore[index]
        yield found


def run_eval(server: FaultServer, questions: Path, out: Path, *more: str) -> int:
    fast = ("--canaries", "0", "--outage", "1", "--retry-budget", "1")
    return cli.main(["eval", "gsm8k", "--base-url", server.url, "--questions", str(questions), "--out", str(out), *fast, *more])


def test_i01_another_backend_than_asked(server: FaultServer, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is asked, exit 4, both names in the message."""
    assert run_eval(server, questions, tmp_path / "a", "--expect-backend", "flashinfer_mxfp4") == 4
    assert server.requests == []
    said = capsys.readouterr().err
    assert "'marlin'" in said
    assert "'flashinfer_mxfp4'" in said


def test_i02_both_legs_at_one_server(server: FaultServer, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        assert run_eval(server, questions, tmp_path / name) == 0
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "same boot" in capsys.readouterr().err
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--aa"]) in (0, 3)


def test_i03_what_differs_is_shown(server: FaultServer, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The backend is on trial; another TP size is named beside it; in an A/A comparison a difference is INVALID."""
    assert run_eval(server, questions, tmp_path / "a") == 0
    server.set_info(boot_id="b", moe_runner_backend="other", tp_size=8)
    assert run_eval(server, questions, tmp_path / "b") == 0
    capsys.readouterr()
    cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    said = capsys.readouterr().out
    assert "on trial: moe_backend: baseline 'marlin', candidate 'other'" in said
    assert "also differs: tp_size: baseline 'unknown', candidate '8'" in said
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--aa"]) == 4


def test_i04_every_sampling_parameter_is_in_the_body(server: FaultServer, questions: Path, tmp_path: Path) -> None:
    assert run_eval(server, questions, tmp_path / "a") == 0
    for request in server.requests:
        assert {"temperature", "top_p", "min_p", "repetition_penalty", "max_tokens", "seed", "n", "stream"} <= request.json.keys()


def test_i05_a_baseline_off_its_band_is_no_baseline(
    server: FaultServer, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stub answers every question wrong; against a band of 90 to 100 % the comparison is INVALID."""
    assert run_eval(server, questions, tmp_path / "a") == 0
    server.set_info(boot_id="b")
    assert run_eval(server, questions, tmp_path / "b") == 0
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--anchor", "90:100"]) == 4
    assert "baseline not as expected" in capsys.readouterr().out


def test_i06_one_changed_character_of_a_question(
    server: FaultServer, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_eval(server, questions, tmp_path / "a") == 0
    server.set_info(boot_id="b")
    questions.write_text(questions.read_text().replace("What is 3 plus one?", "What is 3 plus one."))
    assert run_eval(server, questions, tmp_path / "b") == 0
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 4
    assert "questions differs" in capsys.readouterr().out


def test_i07_pairing_is_by_id_not_by_place(
    server: FaultServer, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file in another order is the same set; duplicates and empty golds are refused by row."""
    assert run_eval(server, questions, tmp_path / "a") == 0
    server.set_info(boot_id="b")
    questions.write_text("\n".join(reversed(questions.read_text().split("\n"))))
    assert run_eval(server, questions, tmp_path / "b") == 0
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) in (0, 3)
    questions.write_text(questions.read_text() + "\n" + questions.read_text().split("\n")[0])
    assert run_eval(server, questions, tmp_path / "c") == 2
    assert "the same question as" in capsys.readouterr().err


def test_i08_another_grader_version_is_refused(
    server: FaultServer, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_eval(server, questions, tmp_path / "a") == 0
    server.set_info(boot_id="b")
    assert run_eval(server, questions, tmp_path / "b") == 0
    with EvalStore.resume(tmp_path / "b" / "run.sqlite") as store:
        store.regrade([], "0", store.run().fingerprint | {"grader_version": "0"})
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 4
    assert "grader_version differs" in capsys.readouterr().out


def test_i10_a_partial_run_has_no_verdict(server: FaultServer, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_eval(server, questions, tmp_path / "a") == 0
    server.set_info(boot_id="b")
    assert run_eval(server, questions, tmp_path / "b", "--shard", "1/2") == 0
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 5
    assert "4 of 8 samples of the first 1 repeats are missing" in capsys.readouterr().err


def test_s01_the_key_is_nowhere(questions: Path, tmp_path: Path) -> None:
    """A server that echoes the Authorization header in errors and answers: the key is in no file, no output and no process list."""
    echoed = []

    def echo(n: int, request: Request) -> Act:
        echoed.append(request.headers["authorization"])
        seen = Path("/proc").glob("[0-9]*/cmdline")
        for path in seen:
            try:
                assert KEY.encode() not in path.read_bytes(), path
            except OSError:
                continue
        body = f"no such luck: {request.headers['authorization']} {KEY}"
        return status((500, 400)[n % 2], body) if n < 6 else answer(rf"\boxed{{{n}}}")

    env = {**os.environ, "OPENAI_API_KEY": KEY}
    with FaultServer(echo) as server:
        command = [
            sys.executable,
            "-m",
            "mxfp4_validate",
            "eval",
            "gsm8k",
            "--base-url",
            server.url,
            "--questions",
            str(questions),
            "--json",
        ]
        command += ["--out", str(tmp_path / "run"), "--retry-budget", "3", "--canaries", "1"]
        outputs = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env, check=False) for _ in range(3)]
    assert echoed[0] == f"Bearer {KEY}", "the server did get the key"
    assert all("no such luck" in done.stderr + done.stdout or done.returncode == 0 for done in outputs)
    for done in outputs:
        assert KEY not in done.stdout + done.stderr
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path
    with EvalStore.open(tmp_path / "run") as store:
        assert all(KEY not in attempt.error for attempt in store.attempts())
        assert any("[redacted]" in attempt.error for attempt in store.attempts())


def test_s01_forms_of_the_key_are_redacted() -> None:
    import base64
    from urllib.parse import quote

    secret = Secret(KEY)
    for form in (KEY, quote(KEY, safe=""), base64.b64encode(KEY.encode()).decode()):
        assert secret.redact(f"a {form} b") == "a [redacted] b"
    assert KEY not in f"{secret} {secret!r}"


def test_s04_terminal_escapes_are_written_out(questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FaultServer(lambda n, request: status(400, "\x1b]0;owned\x07\x1b[2J\u202e gone")) as server:
        assert run_eval(server, questions, tmp_path / "a") == 5
    said = "".join(capsys.readouterr())
    assert "\x1b" not in said
    assert "\x07" not in said
    assert "\u202e" not in said
    assert "\\x1b" in said


@given(st.text(max_size=300))
@settings(derandomize=True, max_examples=500)
def test_s06_names_that_may_name_a_run(text: str) -> None:
    """Whatever is let through stays in its folder."""
    try:
        name = run_name(text)
    except UsageError:
        return
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,100}", name)
    assert (ROOT / name).resolve().parent == ROOT


@pytest.mark.parametrize("bad", ["../../x", "/etc", "CON", "con.txt", "a" * 101, "a\0b", "", ".", "..", "-x", "a/b", "a b"])
def test_s06_names_that_may_not(bad: str) -> None:
    with pytest.raises(UsageError, match="may not name a run"):
        run_name(bad)


@given(st.text())
@settings(derandomize=True, max_examples=300)
def test_s04_shown_text_holds_no_control_character(text: str) -> None:
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown(text))


def test_s07_a_symbolic_link_is_not_written_through(tmp_path: Path) -> None:
    outside = tmp_path / "outside.sqlite"
    outside.write_text("keep")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.sqlite").symlink_to(outside)
    with pytest.raises(UsageError, match="symbolic link"):
        check_folder(tmp_path / "run")
    assert outside.read_text() == "keep"


def test_s09_no_pickle_in_the_package() -> None:
    """No module imports a format that runs code when it is read, and torch.load is never called."""
    for path in (ROOT / "mxfp4_validate").rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"pickle", "dill", "marshal", "shelve", "cloudpickle", "joblib"}, path
            if isinstance(node, ast.Attribute) and node.attr == "load":
                assert not (isinstance(node.value, ast.Name) and node.value.id == "torch"), path


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "gopher://x", "http://user:pw@host/v1", "http://169.254.169.254/v1", "http://[fe80::1]/v1", "host:8000", "http://h/v1?x=1",
     "http://h:99999/v1", ""],
)  # fmt: skip
def test_s12_addresses_that_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="--base-url"):
        parse_address(url)


@pytest.mark.parametrize(
    ("url", "api", "loopback"),
    [
        ("http://localhost:30000", "http://localhost:30000/v1", True),
        ("http://127.0.0.1:8/v1/", "http://127.0.0.1:8/v1", True),
        ("http://[::1]:8/v1", "http://[::1]:8/v1", True),
        ("https://host/prefix/v1", "https://host/prefix/v1", False),
    ],
)
def test_s12_addresses_that_are_fine(url: str, api: str, loopback: bool) -> None:
    found = parse_address(url)
    assert (found.api, found.loopback) == (api, loopback)


def test_s15_provenance_holds_no_secret_of_the_environment(
    server: FaultServer, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf-sentinel-abcdef")
    monkeypatch.setenv("SOME_PASSWORD", "pw-sentinel-abcdef")
    assert run_eval(server, questions, tmp_path / "a") == 0
    data = (tmp_path / "a" / "run.sqlite").read_bytes()
    for secret in (b"hf-sentinel", b"pw-sentinel", os.uname().nodename.encode(), str(Path.home()).encode() + b"/"):
        assert secret not in data, secret


@given(st.binary(max_size=4000))
@settings(derandomize=True, max_examples=200, deadline=None)
def test_s17_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.sqlite"
    path.write_bytes(data)
    with pytest.raises((UsageError, InvalidRun)), EvalStore.open(path) as store:
        store.run()
