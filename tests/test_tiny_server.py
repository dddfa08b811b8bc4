"""The tiny server over HTTP: shapes of its answers, log-probabilities, seeds inside a batch, refusals, and our own client against it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mxfp4_validate import cli
from mxfp4_validate.endpoint.address import Secret, parse_address
from mxfp4_validate.endpoint.client import Client
from mxfp4_validate.endpoint.identity import Identity, read_identity
from mxfp4_validate.tiny.background import in_thread
from mxfp4_validate.tiny.model import Chunk, TinyModel
from mxfp4_validate.tiny.sampling import log_softmax
from mxfp4_validate.tiny.server import Server, Settings
from tests.tiny_rig import make_checkpoint

CONTEXT = 1024
QUESTION = {"role": "user", "content": "A crate holds 4 rows of 6 jars. How many jars are 3 crates?"}


class Served:
    """A server in a thread of this process."""

    def __init__(self, settings: Settings) -> None:
        self.server, self._open = Server(settings), ExitStack()
        self.root = self._open.enter_context(in_thread(self.server))

    def close(self) -> None:
        self._open.close()

    def get(self, path: str) -> tuple[int, Any]:
        return self._ask(urllib.request.Request(self.root + path))

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._ask(urllib.request.Request(self.root + path, data, {"Content-Type": "application/json"}))

    def _ask(self, request: urllib.request.Request) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                status, text = response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                status, text = error.code, error.read()
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text.decode()

    def good(self, path: str, body: Any) -> Any:
        status, answer = self.post(path, body)
        assert status == 200, answer
        return answer

    def chat(self, **fields: Any) -> Any:
        return self.good("/v1/chat/completions", {"messages": [QUESTION], "max_tokens": 12, **fields})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "random")


@pytest.fixture(scope="module")
def served(checkpoint: Path) -> Iterator[Served]:
    found = Served(Settings(checkpoint))
    yield found
    found.close()


@pytest.fixture(scope="module")
def model(served: Served) -> TinyModel:
    """The model behind the server; the engine's thread is idle whenever a test asks it directly."""
    return served.server.engine._model


def identity(served: Served) -> Identity:
    async def ask() -> Identity:
        async with Client(parse_address(f"{served.root}/v1"), Secret("none")) as client:
            return await read_identity(client, None)

    return asyncio.run(ask())


def test_our_client_reads_what_runs(served: Served) -> None:
    found = identity(served)
    assert found.values["moe_backend"] == "emulate:sm90-cutlass"
    assert found.values["model"] == "tiny-gpt-oss"
    assert {"version", "model_path", "tp_size"} <= set(found.values)
    assert found.context_length == CONTEXT
    assert found.models == ("tiny-gpt-oss",)
    assert identity(served).boot == found.boot, "two looks at one boot differ"


def test_a_faulty_server_looks_healthy(checkpoint: Path, served: Served) -> None:
    """It says of itself what the healthy one says, but for its boot; what it answers differs."""
    faulty = Served(Settings(checkpoint, fault="no-beta"))
    try:
        mine, theirs = served.get("/get_server_info")[1], faulty.get("/get_server_info")[1]
        of_this_boot = {"boot_id", "start_time"}
        assert {k: v for k, v in mine.items() if k not in of_this_boot} == {k: v for k, v in theirs.items() if k not in of_this_boot}
        assert identity(faulty).boot != identity(served).boot, "another boot looks like the same"
        assert faulty.get("/health")[0] == faulty.get("/health_generate")[0] == 200
        assert faulty.chat(temperature=0)["choices"] != served.chat(temperature=0)["choices"]
    finally:
        faulty.close()


def test_both_names_of_the_server_info_and_health(served: Served) -> None:
    assert served.get("/get_server_info") == served.get("/server_info")
    assert served.get("/health")[0] == 200
    assert served.get("/health_generate")[0] == 200
    status, answer = served.get("/v2/models")
    assert status == 404
    assert "/v2/models" in answer["error"]["message"]


def test_chat_has_openais_shape(served: Served) -> None:
    answer = served.chat(temperature=0, logprobs=True, top_logprobs=3)
    (choice,) = answer["choices"]
    assert (answer["object"], choice["index"], choice["message"]["role"]) == ("chat.completion", 0, "assistant")
    assert choice["finish_reason"] == "length"
    tokens = served.good("/tokenize", {"messages": [QUESTION]})["count"]
    assert answer["usage"] == {"prompt_tokens": tokens, "completion_tokens": 12, "total_tokens": tokens + 12}
    content = choice["logprobs"]["content"]
    assert len(content) == 12
    for entry in content:
        best = [top["logprob"] for top in entry["top_logprobs"]]
        assert len(best) == 3
        assert best == sorted(best, reverse=True)
        assert entry["logprob"] == best[0], "greedy takes the likeliest"


def events(served: Served, body: dict[str, Any]) -> list[Any]:
    data = json.dumps(body | {"stream": True, "stream_options": {"include_usage": True}}).encode()
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    with urllib.request.urlopen(urllib.request.Request(served.root + path, data), timeout=60) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        lines = [line.removeprefix(b"data: ") for line in response.read().split(b"\n\n") if line]
    assert lines.pop() == b"[DONE]"
    return [json.loads(line) for line in lines]


def test_a_stream_adds_up_to_the_answer_in_one_piece(served: Served) -> None:
    """Characters of several bytes and a stop text that begins and does not end are held back until they are certain."""
    body = {"messages": [QUESTION], "max_tokens": 40, "seed": 3}
    whole = served.good("/v1/chat/completions", body)
    text = whole["choices"][0]["message"]["content"]
    for stop in ([], [text[10:13]]):
        want = served.good("/v1/chat/completions", body | {"stop": stop})
        *chunks, last = events(served, body | {"stop": stop})
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        assert deltas[0] == {"role": "assistant"}
        assert "".join(delta.get("content", "") for delta in deltas) == want["choices"][0]["message"]["content"]
        assert chunks[-1]["choices"][0]["finish_reason"] == want["choices"][0]["finish_reason"]
        assert last["usage"] == want["usage"]
        assert len(chunks) > 4, "nothing was streamed"
    assert want["choices"][0]["finish_reason"] == "stop"
    assert want["choices"][0]["message"]["content"] == text[: text.index(text[10:13])]


def test_completions_stream_too(served: Served) -> None:
    body = {"prompt": "One, two, ", "max_tokens": 12, "temperature": 0}
    want = served.good("/v1/completions", body)["choices"][0]["text"]
    assert "".join(event["choices"][0]["text"] for event in events(served, body) if event["choices"]) == want


def test_an_end_token_ends_the_answer(served: Served) -> None:
    """A token made an end token stops the answer where it first comes, counts in usage, and is not in the text."""
    body = {"text": "Once", "sampling_params": {"max_new_tokens": 20, "seed": 5}}
    ids = served.good("/generate", body)["output_ids"]
    end = ids[9]
    got = served.good("/generate", {"text": "Once", "sampling_params": {"max_new_tokens": 20, "seed": 5, "stop_token_ids": [end]}})
    assert got["output_ids"] == ids[: ids.index(end) + 1]
    assert got["meta_info"]["finish_reason"] == {"type": "stop", "matched": end}
    assert got["meta_info"]["completion_tokens"] == ids.index(end) + 1


def test_three_ways_to_score_a_prompt_agree(served: Served, model: TinyModel) -> None:
    """echo's logprobs, /generate's input_token_logprobs and a forward of the model are the same numbers; so are the likeliest tokens."""
    ids = served.good("/tokenize", {"prompt": "Seven times eight is fifty-six. Nine times six is fifty-four."})["tokens"]
    echo = served.good("/v1/completions", {"prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 5, "return_tokens_as_token_ids": True})
    logprobs = echo["choices"][0]["logprobs"]
    params = {"max_new_tokens": 3, "temperature": 0}
    generate = {"input_ids": ids, "sampling_params": params, "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 5}
    meta = served.good("/generate", generate)["meta_info"]
    rows = log_softmax(model.forward(model.new_cache(1, 128), [Chunk(0, 0, ids)], range(len(ids))).numpy())
    direct = [None, *(float(rows[i, token]) for i, token in enumerate(ids[1:]))]
    assert logprobs["token_logprobs"] == direct
    assert meta["input_token_logprobs"] == [[logprob, token, None] for logprob, token in zip(direct, ids, strict=True)]
    assert logprobs["top_logprobs"][0] is meta["input_top_logprobs"][0] is None
    for theirs, ours in zip(logprobs["top_logprobs"][1:], meta["input_top_logprobs"][1:], strict=True):
        assert theirs == {f"token_id:{token}": logprob for logprob, token, _ in ours}
        assert [logprob for logprob, *_ in ours] == sorted((logprob for logprob, *_ in ours), reverse=True)
    assert echo["usage"]["completion_tokens"] == 0
    assert meta["output_token_logprobs"][0][0] == float(rows[-1].max())
    assert meta["output_token_logprobs_length"] == len(meta["output_top_logprobs"]) == 3


@pytest.mark.parametrize("start", [0, 7, 11, 12])
def test_prompt_scores_begin_where_they_are_asked_for(served: Served, start: int) -> None:
    """The first position has no score; starting behind the prompt leaves none."""
    ids = list(range(40, 52))
    base = {"input_ids": ids, "sampling_params": {"max_new_tokens": 1, "temperature": 0}, "return_logprob": True}
    whole = served.good("/generate", base | {"logprob_start_len": 0})["meta_info"]["input_token_logprobs"]
    part = served.good("/generate", base | {"logprob_start_len": start})["meta_info"]["input_token_logprobs"]
    assert part == [[None, *whole[start][1:]], *whole[start + 1 :]] if start < 12 else part == []
    assert served.good("/generate", base)["meta_info"]["input_token_logprobs"] == [], "the default is the answer alone"


def test_several_prompts_are_answered_in_order(served: Served) -> None:
    prompts = ["One and", "Two and three and", "Four"]
    params = {"max_new_tokens": 6, "temperature": 0}
    alone = [served.good("/generate", {"text": p, "sampling_params": params})["output_ids"] for p in prompts]
    assert [one["output_ids"] for one in served.good("/generate", {"text": prompts, "sampling_params": params})] == alone
    choices = served.good("/v1/completions", {"prompt": prompts, "max_tokens": 6, "temperature": 0})["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]


def seeded(served: Served, number: int) -> Any:
    """One of many different chats, sampled with its own seed."""
    message = {"role": "user", "content": f"{QUESTION['content']} And {number} times {number}?"[number % 20 :]}
    return served.chat(messages=[message], max_tokens=16 + number % 8, temperature=1.0, seed=1000 + number, ignore_eos=True, logprobs=True)


def test_32_concurrent_chats_are_those_of_a_quiet_server(served: Served) -> None:
    """Every answer of a full batch has its own length, and the sampled ones asked again alone are the same to the last log-probability."""
    with ThreadPoolExecutor(32) as pool:
        crowd = list(pool.map(lambda number: seeded(served, number), range(32)))
    assert [answer["usage"]["completion_tokens"] for answer in crowd] == [16 + number % 8 for number in range(32)]
    for number in (0, 5, 17, 31):
        assert seeded(served, number)["choices"] == crowd[number]["choices"], f"chat {number} depends on who else was there"
    assert len({answer["choices"][0]["message"]["content"] for answer in crowd}) == 32


def test_no_seed_is_another_seed_every_time(served: Served) -> None:
    texts = {served.chat(temperature=1.5)["choices"][0]["message"]["content"] for _ in range(3)}
    assert len(texts) > 1


CHAT, COMPLETE, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"
REFUSED = [
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content"),
    (CHAT, {"messages": [QUESTION], "temperature": "hot"}, "temperature"),
    (CHAT, {"messages": [QUESTION], "temperature": -1}, "temperature"),
    (CHAT, {"messages": [QUESTION], "top_p": 0}, "top_p"),
    (CHAT, {"messages": [QUESTION], "min_p": 1.5}, "min_p"),
    (CHAT, {"messages": [QUESTION], "repetition_penalty": 0}, "repetition_penalty"),
    (CHAT, {"messages": [QUESTION], "top_k": 0}, "top_k"),
    (CHAT, {"messages": [QUESTION], "n": 2}, "n"),
    (CHAT, {"messages": [QUESTION], "max_tokens": 0}, "max_tokens"),
    (CHAT, {"messages": [QUESTION], "max_tokens": CONTEXT}, "max_tokens"),
    (CHAT, {"messages": [QUESTION], "max_completion_tokens": True}, "max_completion_tokens"),
    (CHAT, {"messages": [{"role": "user", "content": "x" * CONTEXT}]}, "messages"),
    (CHAT, {"messages": [QUESTION], "seed": 1.5}, "seed"),
    (CHAT, {"messages": [QUESTION], "stop": [""]}, "stop"),
    (CHAT, {"messages": [QUESTION], "presence_penalty": 0.5}, "presence_penalty"),
    (CHAT, {"messages": [QUESTION], "stream": "yes"}, "stream"),
    (CHAT, {"messages": [QUESTION], "stream": True, "stream_options": 7}, "stream_options"),
    (CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
    (COMPLETE, {}, "prompt"),
    (COMPLETE, {"prompt": []}, "prompt"),
    (COMPLETE, {"prompt": "\udfff"}, "prompt"),
    (COMPLETE, {"prompt": [1, 320]}, "prompt"),
    (COMPLETE, {"prompt": "a", "logprobs": -1}, "logprobs"),
    (COMPLETE, {"prompt": "a", "max_tokens": 0}, "max_tokens"),
    (COMPLETE, {"prompt": ["a", "b"], "stream": True}, "stream"),
    (GENERATE, {"sampling_params": {}}, "input_ids"),
    (GENERATE, {"text": "a", "input_ids": [1]}, "input_ids"),
    (GENERATE, {"input_ids": [5, -1]}, "input_ids"),
    (GENERATE, {"input_ids": [5] * (CONTEXT + 1)}, "input_ids"),
    (GENERATE, {"text": "a", "sampling_params": {"max_new_tokens": CONTEXT}}, "sampling_params.max_new_tokens"),
    (GENERATE, {"text": "a", "sampling_params": {"top_p": 2}}, "sampling_params.top_p"),
    (GENERATE, {"text": "a", "sampling_params": [1]}, "sampling_params"),
    (GENERATE, {"text": "a", "return_logprob": True, "logprob_start_len": 2}, "logprob_start_len"),
    (GENERATE, {"text": "a", "stream": True}, "stream"),
    (CHAT, b"{", "body"),
    (CHAT, b"[" * 100_000, "body"),
    (CHAT, [1], "body"),
]


@pytest.mark.parametrize(("path", "body", "field"), REFUSED, ids=[f"{path[1:]}-{field}-{i}" for i, (path, _, field) in enumerate(REFUSED)])
def test_a_bad_request_is_refused_by_field(served: Served, path: str, body: Any, field: str) -> None:
    status, answer = served.post(path, body)
    assert status == 400, answer
    assert answer["error"]["param"] == field, answer
    assert answer["error"]["type"] == "invalid_request_error"
    assert field.split(".")[-1].split("[")[0] in answer["error"]["message"]


def test_another_model_is_not_served(served: Served) -> None:
    status, answer = served.post(CHAT, {"messages": [QUESTION], "model": "other"})
    assert status == 404
    assert answer["error"]["param"] == "model"


def busy(served: Served) -> int:
    return int(served.get("/server_info")[1]["internal_states"][0]["running"])


def test_health_answers_while_it_generates_and_a_client_that_leaves_frees_its_place(served: Served) -> None:
    """A stream of 900 tokens takes seconds; health comes within one, and a second after the client has gone nothing runs."""
    data = json.dumps({"messages": [QUESTION], "max_tokens": 900, "stream": True, "ignore_eos": True}).encode()
    with urllib.request.urlopen(urllib.request.Request(served.root + CHAT, data), timeout=60) as response:
        response.readline()
        started = time.monotonic()
        assert served.get("/health")[0] == 200
        took = time.monotonic() - started
        assert busy(served) == 1, "it was done before anyone looked"
    assert took < 1.0, f"health took {took:.2f} s"
    deadline = time.monotonic() + 5
    while busy(served) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert busy(served) == 0, "it still generates for nobody"


def test_a_step_that_fails_costs_its_requests_and_not_the_server(served: Served, model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("the kernel gave up")

    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", fails)
        status, answer = served.post(CHAT, {"messages": [QUESTION]})
        assert status == 500
        assert "the kernel gave up" in answer["error"]["message"]
        assert served.get("/health_generate")[0] == 500
    assert served.get("/health_generate")[0] == 200
    assert busy(served) == 0


def test_a_nan_is_null_and_the_answer_still_comes(checkpoint: Path) -> None:
    """JSON has no NaN: a model that computes one gives null where a number should be, and 200."""
    broken = Served(Settings(checkpoint, fault="nan-tile", max_running=2))
    try:
        ids = list(range(30, 40))
        body = {"input_ids": ids, "sampling_params": {"max_new_tokens": 2}, "return_logprob": True, "logprob_start_len": 0}
        scores = broken.good("/generate", body)["meta_info"]["input_token_logprobs"]
        assert None in [logprob for logprob, *_ in scores[1:]]
    finally:
        broken.close()


def test_prompts_wait_for_the_budget_and_for_a_slot(checkpoint: Path) -> None:
    """Two at a time, 64 prompt tokens a step, one prompt larger than that: all are answered, and as on a server with room for all."""
    narrow, wide = Served(Settings(checkpoint, max_running=2, max_batch_tokens=64)), Served(Settings(checkpoint))
    try:
        prompts = [[(7 * i + j) % 250 + 5 for j in range(20 + 30 * i)] for i in range(5)]
        body = {"input_ids": prompts, "sampling_params": {"max_new_tokens": 5, "temperature": 0}}
        ids = [[one["output_ids"] for one in server.good("/generate", body)] for server in (narrow, wide)]
        assert ids[0] == ids[1]
        assert [len(one) for one in ids[0]] == [5] * 5
    finally:
        narrow.close()
        wide.close()


def test_our_eval_runs_against_it(served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model that knows nothing is graded, not failed: every question has an answer and the run is complete."""
    rows = [{"question": f"What is {i} plus {i}?", "answer": f"#### {2 * i}"} for i in range(1, 4)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["eval", "gsm8k", "--base-url", f"{served.root}/v1", "--questions", str(tmp_path / "sums.jsonl"), "--max-tokens", "24"]
    argv += ["--canaries", "0", "--json"]
    code = cli.main([*argv, "--out", str(tmp_path / "run"), "--expect-backend", "emulate:sm90-cutlass"])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert json.loads(out)["summary"]["mean_tokens"] == 24.0
    assert sum(json.loads(out)["samples"].values()) == 3
    assert cli.main([*argv, "--out", str(tmp_path / "other"), "--expect-backend", "marlin"]) != 0, "it took another backend for marlin"
    assert "emulate:sm90-cutlass" in capsys.readouterr().err


def serve(*argv: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mxfp4_validate", "serve", "tiny", *map(str, argv)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_verb_prints_its_port_when_ready_and_ends_on_sigterm(checkpoint: Path) -> None:
    """stdout is that one line, the fault's name is in the log, and a request that is open gets an answer before the end."""
    with serve("--model", checkpoint, "--fault", "no-clamp", "--served-model-name", "mine") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:"), line
        root = line.split()[-1]
        with urllib.request.urlopen(f"{root}/v1/models", timeout=10) as response:
            assert json.load(response)["data"][0]["id"] == "mine"
        data = json.dumps({"messages": [QUESTION], "max_tokens": 900, "ignore_eos": True}).encode()
        with ThreadPoolExecutor(1) as pool:
            pending = pool.submit(urllib.request.urlopen, urllib.request.Request(root + CHAT, data), timeout=60)
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            with pytest.raises(urllib.error.HTTPError) as refused:
                pending.result()
        with refused.value as error:
            assert error.code == 503
            assert "shutting down" in json.load(error)["error"]["message"]
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "")
    assert "no-clamp" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--fault", "no-clmap"), "no-clamp"),
        (("--backend", "emulate:sm90"), "emulate:sm90-cutlass"),
        (("--fault", "no-beta", "--backend", "reference"), "beta is 1"),
        (("--max-running", "0"), "--max-running 0"),
        (("--context-length", "4096"), "--context-length 4096"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_listens(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], message: str
) -> None:
    assert cli.main(["serve", "tiny", "--model", str(checkpoint), *argv]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert "listening" not in out


def test_faults_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "tiny", "--list-faults"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:2] == ["no-clamp", "any"] for line in lines)
    assert any(line.split()[:2] == ["bf16-sum", "emulate:*"] for line in lines)
