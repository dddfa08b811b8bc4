"""Rows P1..P15, P18 and P19 of the fault table: what an HTTP 200 may hold. (P16 and P17 are about logprobs, which are never asked for.)"""

from __future__ import annotations

import gzip
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mxfp4_validate.endpoint.client import Limits
from mxfp4_validate.grading import grade, sandbox
from mxfp4_validate.grading.base import Grade
from mxfp4_validate.serving import run as running
from mxfp4_validate.serving.legs import read_leg
from mxfp4_validate.verdicts.summary import summarise
from tests.fault_rig import by_number, planned, run
from tests.fault_server import Act, FaultServer, answer, completion, http, raw


def good(i: int) -> Act:
    return answer(rf"One more than {i}: \boxed{{{i + 1}}}")


def only(first: Act):
    """Question 0 always gets `first`, the others the right answer."""
    return by_number(lambda i: first if i == 0 else good(i))


def rejected(body: Act, tmp_path: Path, **kwargs):
    """A run in which question 0's answers cannot be read: asked twice, never scored, and nobody else suffers."""
    with FaultServer(only(body)) as server:
        outcome = run(server.url, tmp_path, planned(3), **kwargs)
    assert outcome.status == 5
    assert outcome.states == {"q0": "invalid_response", "q1": "answered", "q2": "answered"}
    assert outcome.graded == outcome.right == {"q1", "q2"}
    assert sum("[0]" in request.text for request in server.requests) == 2
    assert outcome.samples["q0"].content == ""
    return outcome.samples["q0"].error


def accepted(act: Act, tmp_path: Path, **kwargs):
    """A run of one question that is answered by `act`; its outcome."""
    with FaultServer(lambda n, r: act) as server:
        outcome = run(server.url, tmp_path, planned(1), **kwargs)
    assert len(server.requests) == 1
    return outcome


@pytest.mark.parametrize("body", [completion(r"\boxed{1}")[:-9], b"\x1b[31mnot json " + b"x" * 5000, b"", b"null", b"[]", b'"text"'])
def test_p01_malformed_json(body, tmp_path):
    error = rejected(raw(body), tmp_path)
    assert "\x1b" not in error
    assert len(error) < 800
    if body.startswith(b"\x1b"):
        assert "\\x1b[31mnot json xxx" in error
        assert error.count("x" * 400) == 1


def test_p01_once_is_forgiven(tmp_path):
    """The second answer counts, marked as another draw."""
    acts = iter([raw(b"{"), good(0)])
    with FaultServer(lambda n, r: next(acts)) as server:
        outcome = run(server.url, tmp_path, planned(1))
    assert (outcome.status, outcome.states, outcome.samples["q0"].flags) == (0, {"q0": "answered"}, ("rerolled",))


def test_p02_html_with_200(tmp_path):
    page = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>\\boxed{1}</body></html>"
    assert rejected(raw(page), tmp_path) == "not JSON, looks like HTML: Sign in"


@pytest.mark.parametrize("choices", [[], None, {}, "stop", [None], [{}], [{"message": None}]])
def test_p03_no_choices(choices, tmp_path):
    rejected(raw(json.dumps({"model": "stub", "choices": choices}).encode()), tmp_path)


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_p04_reasoning_only(content, tmp_path):
    """The reasoning holds the right answer and is not graded from; counted as empty."""
    outcome = accepted(answer(content, reasoning_content=r"so \boxed{1}"), tmp_path)
    assert (outcome.status, outcome.states, outcome.right) == (0, {"q0": "empty"}, set())
    assert outcome.samples["q0"].reasoning == r"so \boxed{1}"


@pytest.mark.parametrize("content", [None, r"\boxed{1}"])
def test_p05_cut_at_the_cap(content, tmp_path):
    """Truncated, whether or not a right answer can be read from what there is."""
    outcome = accepted(answer(content, finish="length", reasoning_content="hm"), tmp_path)
    assert (outcome.status, outcome.states) == (0, {"q0": "truncated"})
    summary = summarise(read_leg(outcome.path))
    assert (summary.score, summary.states) == (0.0, {"truncated": 1})


def test_p06_abort(tmp_path):
    with FaultServer(only(answer(r"\boxed{1}", finish="abort"))) as server:
        outcome = run(server.url, tmp_path, planned(2))
    assert (outcome.status, outcome.states, outcome.graded) == (5, {"q0": "aborted", "q1": "answered"}, {"q1"})


@pytest.mark.parametrize(
    ("finish", "flags"),
    [(None, ("finish-reason-missing",)), ("eos", ("finish-reason-unknown",)), (7, ("finish-reason-missing",)), ("content_filter", ())],
)
def test_p06_other_finish_reasons(finish, flags, tmp_path):
    """Kept, with a flag and the server's own word."""
    outcome = accepted(answer(r"\boxed{1}", finish=finish), tmp_path)
    assert (outcome.status, outcome.states) == (0, {"q0": "answered"})
    assert outcome.samples["q0"].flags == flags
    assert outcome.samples["q0"].finish_reason == (finish if isinstance(finish, str) else "")


@pytest.mark.parametrize("count", ["absent", 0, -5, "20", 1.5, True, None, 10**30])
def test_p07_usage_unusable(count, tmp_path):
    """Unknown, never 0: neither in the record nor in a mean, and no speed is made of it."""
    usage = {} if count == "absent" else {"prompt_tokens": count, "completion_tokens": count}
    outcome = accepted(answer(r"\boxed{1}", usage=usage), tmp_path)
    sample = outcome.samples["q0"]
    assert (outcome.status, sample.state) == (0, "answered")
    assert (sample.completion_tokens, sample.prompt_tokens) == (None, None)
    assert "tokens-unknown" in sample.flags
    assert math.isnan(summarise(read_leg(outcome.path)).mean_tokens)


@pytest.mark.parametrize("usage", [None, [], "many", 3])
def test_p07_usage_of_another_type(usage, tmp_path):
    body = json.loads(completion(r"\boxed{1}"))
    outcome = accepted(raw(json.dumps(body | {"usage": usage}).encode()), tmp_path)
    assert (outcome.states, outcome.samples["q0"].completion_tokens) == ({"q0": "answered"}, None)


def test_p08_more_tokens_than_allowed(tmp_path):
    outcome = accepted(answer(r"\boxed{1}", usage={"prompt_tokens": 1, "completion_tokens": 65}), tmp_path)
    assert outcome.samples["q0"].flags == ("over-max-tokens",)
    assert outcome.samples["q0"].completion_tokens == 65


def test_p09_another_model_answers(tmp_path):
    with FaultServer(by_number(lambda i: answer(rf"\boxed{{{i + 1}}}", model="stub-int4" if i == 3 else "stub"))) as server:
        outcome = run(server.url, tmp_path, planned(40), concurrency=1)
    assert (outcome.status, outcome.kind) == (4, "invalid")
    assert "'stub-int4'" in outcome.reason
    assert "'stub' was asked for" in outcome.reason
    assert "wrong-model" in outcome.kinds()
    assert len(server.requests) == 4


@pytest.mark.parametrize("indices", [(0, 1), (0, 0), (1,), (-1,), ("0",)])
def test_p10_choices_of_others(indices, tmp_path):
    body = json.loads(completion(r"\boxed{1}"))
    choices = [body["choices"][0] | {"index": index} for index in indices]
    rejected(raw(json.dumps(body | {"choices": choices}).encode()), tmp_path)


HUGE = r"""
import resource, sys
from pathlib import Path
from mxfp4_validate.endpoint.client import Limits
from tests.fault_rig import planned, run
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
outcome = run(sys.argv[1], Path(sys.argv[2]), planned(int(sys.argv[3])), concurrency=64, deadline=60, limits=Limits(idle=30))
print(outcome.status, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) // 1024, ",".join(sorted(set(outcome.states.values()))))
"""


@pytest.mark.parametrize(("mb", "count", "most"), [(50, 1, 500), (2, 16, 400)])
def test_p11_huge_answers(mb, count, most, tmp_path):
    """One answer of 50 MB, or sixteen of 400,000 tokens at once: read, graded and stored within a bounded memory, compressed."""
    text = "ten figs and a tree, " * (mb * 50_000) + r"\boxed{1}"
    whole = http(200, completion(text, usage={"prompt_tokens": 1, "completion_tokens": 64}))
    with FaultServer(lambda n, r: Act([whole])) as server:
        command = [sys.executable, "-c", HUGE, server.url, str(tmp_path), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    status, grown, states = done.stdout.split()
    assert (status, states) == ("0", "answered")
    assert int(grown) < most
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < mb * count * 1_000_000 / 20


def test_p11_larger_than_the_limit(tmp_path):
    error = rejected(raw(completion("x" * 5000)), tmp_path, limits=Limits(connect=1, idle=1, max_bytes=4000))
    assert error == "the body is larger than 4000 bytes"


NASTY = "\ud800 a\x00b \ufeff \u202eabc\u202c \U0001f600 \udc9f \x1b[2J \u2028 \\boxed{1}"


def test_p12_odd_characters_survive(tmp_path):
    """What cannot be printed is stored as it came, and the file stays readable."""
    outcome = accepted(answer(NASTY), tmp_path)
    assert (outcome.status, outcome.states) == (0, {"q0": "answered"})
    assert outcome.samples["q0"].content == NASTY
    json.dumps([outcome.samples["q0"].error, outcome.reason, outcome.events], ensure_ascii=False).encode("utf-8")


def test_p12_bytes_that_are_no_text(tmp_path):
    """A character cut in half, and a byte-order mark before the JSON, are refused and not repaired."""
    body = completion("XX").replace(b"XX", "\U0001f600".encode()[:2])
    assert "not UTF-8" in rejected(raw(body), tmp_path / "cut")
    rejected(raw(b"\xef\xbb\xbf" + completion(r"\boxed{1}")), tmp_path / "bom")


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 100_000, b'{"choices":' + b"[" * 100_000 + b"]" * 100_000 + b"}"])
def test_p13_deep_nesting(body, tmp_path):
    rejected(raw(body), tmp_path)


@pytest.mark.parametrize("literal", [b"NaN", b"Infinity", b"-Infinity"])
def test_p14_numbers_that_are_not_json(literal, tmp_path):
    body = completion(r"\boxed{1}").replace(b'"completion_tokens": 20', b'"completion_tokens": ' + literal)
    assert f"{literal.decode()} is not JSON" in rejected(raw(body), tmp_path)


def zipped(body: bytes, encoding: str = "gzip") -> Act:
    return Act([http(200, gzip.compress(body), {"Content-Encoding": encoding})])


def test_p15_gzip_bomb(tmp_path):
    """It is refused at the limit, long before it is unfolded."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = rejected(zipped(b'{"a":"' + b"x" * (100 << 20)), tmp_path, limits=Limits(connect=1, idle=5, max_bytes=8 << 20))
    assert error == f"the body unfolds to more than {8 << 20} bytes"
    assert len(gzip.compress(b"x" * 1000)) < 100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10


@pytest.mark.parametrize("size", [10, 1 << 20, (1 << 20) + 200, 3 << 20])
def test_p15_honest_gzip(size, tmp_path):
    outcome = accepted(zipped(completion("x" * size + r"\boxed{1}")), tmp_path)
    assert (outcome.status, len(outcome.samples["q0"].content)) == (0, size + 9)


def test_p15_cut_or_false_gzip(tmp_path):
    whole = gzip.compress(completion(r"\boxed{1}"))
    cut = Act([http(200, whole[:-12], {"Content-Encoding": "gzip"})])
    assert "ends in the middle" in rejected(cut, tmp_path / "cut")
    assert "is not gzip" in rejected(raw(completion("x"), headers={"Content-Encoding": "gzip"}), tmp_path / "false")
    assert "'br'" in rejected(raw(completion("x"), headers={"Content-Encoding": "br"}), tmp_path / "br")


NASTY_ANSWERS = [
    r"\boxed{" + "9^{" * 5000 + "9" + "}" * 5001,
    r"\boxed{9^{9^{9^{9^9}}}}",
    "(" * 200_000,
    r"\boxed{" * 50_000,
    "1," * 300_000,
    r"\frac{1}{" * 20_000,
    "#### " * 100_000,
    "answer is " * 100_000,
    " " * 500_000 + "x",
    "-" * 500_000,
    "1" * 500_000,
    r"\boxed{" + "1" * 100_000 + "}",
    "\n" * 500_000,
    "$" * 200_000,
    "**" * 200_000,
    NASTY * 5000,
]


@pytest.mark.parametrize("number", range(len(NASTY_ANSWERS)))
@pytest.mark.parametrize(("suite", "gold"), [("gsm8k", "1"), ("aime25", "1"), ("gpqa", "A")])
def test_p18_nasty_answers(suite, gold, number):
    """Our own rules end on any text; a rule whose time grows with the square of the length would be past the bound."""
    for mode in ("lenient", "strict"):
        started = time.process_time()
        assert grade(suite, NASTY_ANSWERS[number], gold, mode=mode).correct in (True, False)
        assert time.process_time() - started < 10


def test_p18_a_hung_grader_is_killed():
    """The child that runs others' code dies at its limit, and the next answer is graded by a new one."""
    pytest.importorskip("math_verify")
    assert sandbox.ask("equal", answer="1", gold="1") is True
    hung = sandbox._child
    started = time.monotonic()
    with pytest.raises(sandbox.Failed, match="no result within 1 s"):
        sandbox.ask("equal", limit=1, answer="(x+1)^{" * 12 + "99999" + "}" * 12, gold="1")
    assert time.monotonic() - started < 20
    assert hung.process.wait(10) < 0
    assert sandbox.ask("equal", answer="1", gold="1") is True
    assert sandbox._child is not hung
    sandbox.close()


def test_p18_grader_error_is_not_a_wrong_answer(tmp_path, monkeypatch):
    """A grader that fails invalidates the run's leg by name instead of lowering its score."""
    failed = Grade(False, None, "grader-error", flags=("grader-error",))
    monkeypatch.setattr(running, "grade", lambda *args, **kwargs: failed)
    outcome = accepted(good(0), tmp_path)
    assert any("the grader failed on q0 repeat 0" in reason for reason in read_leg(outcome.path).invalid)


def test_p19_both_grades_are_kept(tmp_path):
    """A right answer without a box: lenient counts it, strict does not, and both are in the record."""
    with FaultServer(by_number(lambda i: answer(f"The answer is {i + 1}.") if i % 2 else good(i))) as server:
        outcome = run(server.url, tmp_path, planned(4))
    assert outcome.status == 0
    scores = {mode: summarise(read_leg(outcome.path, mode)).score for mode in ("lenient", "strict")}
    assert scores == {"lenient": 1.0, "strict": 0.5}
