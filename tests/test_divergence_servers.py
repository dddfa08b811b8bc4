"""Three protocols over a real port: the numbers arrive as they were, and a server that says something impossible is refused by name."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mxfp4_validate.divergence.analyse import analyse
from mxfp4_validate.divergence.collect import Asking, begin_arm, cost, score_arm, windows
from mxfp4_validate.divergence.corpus import Corpus, build
from mxfp4_validate.divergence.record import DivergenceStore
from mxfp4_validate.divergence.scores import FAULTS, BadServer
from mxfp4_validate.endpoint.address import Secret, parse_address
from mxfp4_validate.endpoint.flow import RetryPolicy
from mxfp4_validate.endpoint.logprob_bodies import PROTOCOLS
from mxfp4_validate.endpoint.logprobs import ScoringClient, refuse_speculation
from mxfp4_validate.errors import IncompleteRun, InvalidRun, UnknownName, UsageError
from tests.divergence_rig import LogprobServer, scores_of, toy_logprobs
from tests.fault_server import FaultServer, answer

TOP = 20
RETRY = RetryPolicy(first=0.01, most=0.02, budget=1, attempts=3)
Change = Callable[[str, Any], Any]


def corpus(count: int = 3, length: int = 40, start: int = 6) -> Corpus:
    rng = np.random.default_rng(1)
    return build([([int(t) for t in rng.integers(0, 50, length)], start) for _ in range(count)])


def score(
    url: str, path: Path, made: Corpus, protocol: str = "sglang", width: int = 512, name: str = "b", role: str = "baseline", **kwargs: Any
) -> DivergenceStore:
    """One arm into a new file, or into one that is there."""

    async def main(store: DivergenceStore) -> None:
        async with ScoringClient(parse_address(url), Secret("sk-sentinel-77")) as client:
            identity = await begin_arm(client, store, name, role)
            await score_arm(client, store, name, identity, Asking(protocol, retry=RETRY, deadline=20, **kwargs))

    store = DivergenceStore.resume(path, made) if path.exists() else DivergenceStore.create(path, made, TOP, width, {})
    try:
        asyncio.run(main(store))
    except BaseException:
        store.close()
        raise
    return store


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_every_protocol_brings_the_models_own_numbers(protocol: str, tmp_path: Path) -> None:
    made = corpus()
    with LogprobServer() as server, score(server.url, tmp_path / "r.sqlite", made, protocol) as store:
        rows = store.scores("b")
    assert len(rows) == 3
    for place, sequence in enumerate(made.sequences):
        want = scores_of(toy_logprobs(sequence.tokens)[sequence.start :], sequence.targets, TOP)
        found = rows[place].scores
        assert found is not None
        assert np.array_equal(found.chosen, want.chosen)
        assert np.array_equal(found.top, want.top)
        assert np.array_equal(found.top_ids, want.top_ids)
        assert found.texts == (() if protocol == "openai" else tuple(f"<{t}>" for t in sequence.targets))


def test_long_sequences_go_in_windows_of_at_most_512_positions(tmp_path: Path) -> None:
    made = corpus(1, 1100, 30)
    with LogprobServer() as server, score(server.url, tmp_path / "r.sqlite", made) as store:
        found = store.scores("b")[0].scores
        asked = [(body["logprob_start_len"], len(body["input_ids"])) for body in server.bodies]
    assert asked == [(29, 542), (541, 1054), (1053, 1100)]
    assert all(end - start - 1 <= 512 for start, end in asked)
    want = scores_of(toy_logprobs(made.sequences[0].tokens)[30:], made.sequences[0].targets, TOP)
    assert found is not None
    assert np.array_equal(found.chosen, want.chosen), "a window's positions are not where they belong"
    assert np.array_equal(found.top_ids, want.top_ids)
    assert store.corpus.scored == 1070


def test_the_width_of_a_window_sets_the_tokens_of_a_forward(tmp_path: Path) -> None:
    made = corpus(2)
    with LogprobServer() as server, score(server.url, tmp_path / "r.sqlite", made, width=8) as store:
        extended = {len(body["input_ids"]) - body["logprob_start_len"] - 1 for body in server.bodies}
    assert extended == {8, 2}
    assert len(store.corpus.sequences) == 2
    assert cost(made, 8, PROTOCOLS["sglang"]).requests == len(server.bodies) == 10
    assert cost(made, 8, PROTOCOLS["sglang"]).sent == sum(len(body["input_ids"]) for body in server.bodies)
    assert (cost(made, 8, PROTOCOLS["vllm"]).requests, cost(made, 512, PROTOCOLS["vllm"]).sent) == (2, 80)
    whole = build([([i, *range(700)], 189) for i in range(256)])
    assert cost(whole, 512, PROTOCOLS["sglang"]).aime_share == pytest.approx(0.0089, abs=1e-4)
    for width in (0, 513):
        with pytest.raises(UsageError, match="1 to 512 positions"):
            list(windows(made.sequences[0], width, PROTOCOLS["sglang"]))


def at(document: Any, name: str, place: int) -> Any:
    return document["meta_info"][name][place]


def edited(edit: Callable[[dict[str, Any]], Any]) -> Change:
    """Changes SGLang's answers in place."""

    def change(path: str, document: Any) -> Any:
        edit(document)
        return document

    return change


def flat(document: dict[str, Any]) -> None:
    """Each log-probability is possible and the list is in order: only the sum of 2.5 is wrong."""
    for place, row in enumerate(document["meta_info"]["input_top_logprobs"][1:], 1):
        for rank, item in enumerate(row):
            item[0] = -2.0 - rank * 0.01
        entry = at(document, "input_token_logprobs", place)
        entry[0] = next((item[0] for item in row if item[1] == entry[1]), -9.0)


LIES: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "one position short": ("too-few-logprobs", lambda d: d["meta_info"]["input_token_logprobs"].pop()),
    "one list short": ("too-few-logprobs", lambda d: d["meta_info"]["input_top_logprobs"].pop()),
    "one position more": ("too-few-logprobs", lambda d: d["meta_info"]["input_token_logprobs"].append([-1.0, 3, "x"])),
    "no boundary": ("too-few-logprobs", lambda d: [d["meta_info"][n].pop(0) for n in ("input_token_logprobs", "input_top_logprobs")]),
    "nineteen": ("short-top", lambda d: at(d, "input_top_logprobs", 9).pop()),
    "null list": ("short-top", lambda d: d["meta_info"]["input_top_logprobs"].__setitem__(5, None)),
    "unsorted": ("unsorted-top", lambda d: at(d, "input_top_logprobs", 9).reverse()),
    "twice": ("duplicate-top", lambda d: at(d, "input_top_logprobs", 9)[4].__setitem__(1, at(d, "input_top_logprobs", 9)[3][1])),
    "positive": ("positive-logprob", lambda d: at(d, "input_top_logprobs", 9)[0].__setitem__(0, 0.3)),
    "positive chosen": ("positive-logprob", lambda d: at(d, "input_token_logprobs", 9).__setitem__(0, 0.3)),
    "not normalised": ("top-mass", flat),
    "another token": ("other-tokens", lambda d: at(d, "input_token_logprobs", 9).__setitem__(1, 77)),
    "zero for a token in the midst": ("other-tokens", lambda d: at(d, "input_token_logprobs", 9).__setitem__(1, 0)),
    "shifted by one": (
        "other-tokens", lambda d: d["meta_info"]["input_token_logprobs"].insert(1, d["meta_info"]["input_token_logprobs"].pop(-1))
    ),
    "a BOS was added": ("other-tokens", lambda d: d["meta_info"].__setitem__("prompt_tokens", 41)),
    "two distributions": ("chosen-apart", lambda d: at(d, "input_token_logprobs", 9).__setitem__(0, -0.001)),
    "negative id": ("bad-token-id", lambda d: at(d, "input_top_logprobs", 9)[4].__setitem__(1, -4)),
    "texts for numbers": ("other-protocol", lambda d: at(d, "input_token_logprobs", 9).__setitem__(0, "-1")),
    "no lists": ("other-protocol", lambda d: d["meta_info"].pop("input_top_logprobs")),
    "a number for a list": ("other-protocol", lambda d: d["meta_info"]["input_top_logprobs"].__setitem__(5, 7)),
}  # fmt: skip


@pytest.mark.parametrize("lie", list(LIES))
def test_an_impossible_answer_is_refused_by_name(lie: str, tmp_path: Path) -> None:
    fault, edit = LIES[lie]

    with LogprobServer(change=edited(edit)) as server, pytest.raises(BadServer) as caught:
        score(server.url, tmp_path / "r.sqlite", corpus(1))
    assert caught.value.fault == fault
    assert str(caught.value).startswith(caught.value.fault + ": ")
    assert len(server.bodies) == 1, "a lie was asked again"
    with DivergenceStore.open(tmp_path / "r.sqlite") as store:
        assert store.missing("b") == [0], "a refused answer was kept"


def test_sglang_writes_zero_for_the_last_token_of_the_vocabulary(tmp_path: Path) -> None:
    """As sglang 0.5.12.post1 answers: the id alone is wrong. A wrong number under it is seen as under any other."""
    tokens = [int(t) for t in np.random.default_rng(2).integers(0, 49, 40)]
    tokens[20] = 49
    made = build([(tokens, 6)])

    def clipped(document: dict[str, Any]) -> None:
        for entry in document["meta_info"]["input_token_logprobs"]:
            entry[1] = entry[1] if entry[1] < 49 else 0

    def spoilt(document: dict[str, Any]) -> None:
        clipped(document)
        at(document, "input_token_logprobs", 15)[0] = -0.001

    with LogprobServer() as server, score(server.url, tmp_path / "a.sqlite", made) as store:
        honest = store.scores("b")[0].scores
    with LogprobServer(change=edited(clipped)) as server, score(server.url, tmp_path / "b.sqlite", made) as store:
        found = store.scores("b")[0].scores
    assert honest is not None
    assert found is not None
    assert np.array_equal(found.chosen, honest.chosen)
    with LogprobServer(change=edited(spoilt)) as server, pytest.raises(BadServer, match=r"chosen-apart: .*token 49"):
        score(server.url, tmp_path / "c.sqlite", made)


def test_every_refusal_has_been_provoked() -> None:
    """`named-by-text` and `other-texts` are provoked elsewhere in these tests."""
    assert {fault for fault, _ in LIES.values()} | {"named-by-text", "other-texts"} == set(FAULTS)


def test_dust_above_zero_is_rounding(tmp_path: Path) -> None:
    def dusty(document: dict[str, Any]) -> None:
        row = at(document, "input_top_logprobs", 9)
        for rank, item in enumerate(row):
            item[0] = 5e-6 if rank == 0 else -14.0 - rank
        entry = at(document, "input_token_logprobs", 9)
        entry[0] = next((item[0] for item in row if item[1] == entry[1]), -40.0)

    with LogprobServer(change=edited(dusty)) as server, score(server.url, tmp_path / "r.sqlite", corpus(1)) as store:
        found = store.scores("b")[0].scores
    assert found is not None
    assert (found.top.max(), found.top_ids.shape) == (0.0, (34, 20))


def bare_nan(path: str, document: Any) -> bytes:
    at(document, "input_token_logprobs", 9)[0] = math.nan
    return json.dumps(document).encode()


def null(path: str, document: Any) -> Any:
    at(document, "input_top_logprobs", 9)[3][0] = None
    return document


NAN: dict[str, tuple[str, Change]] = {
    "null in the list": ("sglang", null),
    "bare NaN": ("sglang", bare_nan),
    "vLLM's HTTP 400": ("vllm", lambda p, d: (400, '{"message": "Out of range float values are not JSON compliant: nan"}')),
    "openai null": ("openai", lambda p, d: d["choices"][0]["logprobs"]["token_logprobs"].__setitem__(15, None) or d),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(NAN))
def test_nan_is_kept_as_evidence_and_fails_the_candidate(kind: str, tmp_path: Path) -> None:
    """The first of twenty sequences that is asked answers NaN; it is not asked again, the others go on."""
    protocol, change = NAN[kind]
    made, path = corpus(20, 30, 10), tmp_path / "r.sqlite"
    calls: list[int] = []

    def once(where: str, document: Any) -> Any:
        calls.append(1)
        return change(where, document) if len(calls) == 1 else document

    for name, role, seed in (("b", "baseline", 1), ("aa", "floor", 2)):
        with LogprobServer(0.05, seed) as server:
            score(server.url, path, made, protocol, name=name, role=role).close()
    with LogprobServer(0.05, 3, once) as server, score(server.url, path, made, protocol, name="c", role="candidate") as store:
        result = analyse(store, "c")
        errors = [row.error for row in store.scores("c").values() if row.scores is None]
    assert len(calls) == 20, "NaN was asked again, or ended the run"
    assert (result.decision.outcome, len(result.not_finite)) == ("FAIL", 1)
    assert result.decision.reasons[0].startswith("NaN: 1 sequences")
    assert "no number" in errors[0] or "Out of range float values" in errors[0]


@pytest.mark.parametrize(
    "info",
    [
        {"speculative_algorithm": "EAGLE"},
        {"server_args": {"speculative_algorithm": "NEXTN"}},
        {"internal_states": [{"speculative_config": {"method": "ngram"}}]},
        {"vllm_config": {"speculative_config": "SpeculativeConfig(method='eagle')"}},
    ],
)
def test_a_server_that_speculates_is_refused_before_it_is_asked(info: dict[str, Any], tmp_path: Path) -> None:
    with LogprobServer(info=info) as server, pytest.raises(UsageError, match=r"decodes speculatively .*start it without speculation"):
        score(server.url, tmp_path / "r.sqlite", corpus(1))
    assert server.bodies == []


def test_a_server_that_could_speculate_and_does_not_is_asked() -> None:
    refuse_speculation(
        {
            "speculative_algorithm": None,
            "speculative_config": "None",
            "speculative_num_steps": 3,
            "speculative_accept_threshold_single": 1.0,
        }
    )
    refuse_speculation(["speculative_algorithm", 3, None])


def test_a_name_by_text_is_refused(tmp_path: Path) -> None:
    def named(path: str, document: Any) -> Any:
        document["choices"][0]["logprobs"]["tokens"][9] = " the"
        return document

    with LogprobServer(change=named) as server, pytest.raises(BadServer) as caught:
        score(server.url, tmp_path / "r.sqlite", corpus(1), "openai")
    assert caught.value.fault == "named-by-text"


def test_vllms_lists_are_judged_too(tmp_path: Path) -> None:
    def swapped(path: str, document: Any) -> Any:
        row = document["choices"][0]["prompt_logprobs"][9]
        first, last = (next(v for v in row.values() if v["rank"] == rank) for rank in (1, 20))
        first["rank"], last["rank"] = 20, 1
        return document

    def missing(path: str, document: Any) -> Any:
        document["choices"][0]["prompt_logprobs"][9] = {"1": {"logprob": -1.0, "rank": 1}}
        return document

    for change, fault in ((swapped, "unsorted-top"), (missing, "other-tokens")):
        with LogprobServer(change=change) as server, pytest.raises(BadServer) as caught:
            score(server.url, tmp_path / f"{fault}.sqlite", corpus(1), "vllm")
        assert caught.value.fault == fault


def test_a_wrong_protocol_names_the_others(tmp_path: Path) -> None:
    with (
        FaultServer(lambda number, request: answer()) as server,
        pytest.raises(IncompleteRun, match=r"no /generate there .*one of sglang, vllm, openai"),
    ):
        score(server.url, tmp_path / "r.sqlite", corpus(1))
    with pytest.raises(UnknownName, match="did you mean sglang"):
        Asking("sglnag").resolved()


def test_what_passes_is_asked_again_and_what_stays_ends_the_run_resumably(tmp_path: Path) -> None:
    made, path, state = corpus(8), tmp_path / "r.sqlite", {"calls": 0, "down": True}

    def flaky(where: str, document: Any) -> Any:
        state["calls"] += 1
        if state["calls"] == 2:
            return b"{"
        return (503, "busy") if state["calls"] == 3 or (state["calls"] > 8 and state["down"]) else document

    with LogprobServer(change=flaky) as server:
        with pytest.raises(IncompleteRun, match="HTTP 503: busy; mend that, then run the same command again"):
            score(server.url, path, made, concurrency=1)
        with DivergenceStore.open(path) as store:
            left = store.missing("b")
        assert 0 < len(left) < 8
        state["down"], before = False, len(server.bodies)
        with score(server.url, path, made, concurrency=1) as store:
            assert store.missing("b") == []
        again = {tuple(body["input_ids"]) for body in server.bodies[before:]}
        assert again == {made.sequences[place].tokens for place in left}, "a sequence that was kept was asked again, or one was not asked"


def test_a_server_that_became_another_one_is_named(tmp_path: Path) -> None:
    with LogprobServer() as server:

        def restart(where: str, document: Any) -> Any:
            server.info = {**server.info, "boot_id": "b", "moe_runner_backend": "triton"}
            return document

        server.change = restart
        with pytest.raises(InvalidRun, match=r"became another server .*moe_backend changed from 'marlin' to 'triton'"):
            score(server.url, tmp_path / "r.sqlite", corpus(1))
        with pytest.raises(UsageError, match="name a new arm"):
            score(server.url, tmp_path / "r.sqlite", corpus(1))


def test_concurrency_and_order_are_kept(tmp_path: Path) -> None:
    made = corpus(12, 12, 4)
    firsts = []
    for order in (1, 2):
        with LogprobServer() as server, score(server.url, tmp_path / f"{order}.sqlite", made, concurrency=3, order=order) as store:
            assert store.missing("b") == []
        assert 2 <= server.most_in_flight <= 3
        firsts.append([body["input_ids"] for body in server.bodies])
    assert sorted(firsts[0]) == sorted(firsts[1])
    assert firsts[0] != firsts[1]


def test_no_server_is_an_incomplete_run(tmp_path: Path) -> None:
    with pytest.raises(IncompleteRun, match="does not answer"):
        score("http://127.0.0.1:9/v1", tmp_path / "r.sqlite", corpus(1))


def test_a_first_position_without_a_token_before_it_is_a_callers_error() -> None:
    async def main() -> None:
        async with ScoringClient(parse_address("http://127.0.0.1:9/v1"), Secret("x")) as client:
            await client.score(PROTOCOLS["sglang"], "m", [1, 2], 0, TOP, 1.0, "r")

    with pytest.raises(ValueError, match="first position 0 of 2 tokens"):
        asyncio.run(main())
