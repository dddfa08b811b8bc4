"""Requests for log-probabilities of given tokens and their answers: SGLang's /generate, vLLM's prompt_logprobs, OpenAI's echo.

An answer is only taken apart here; whether its numbers can be true is for `divergence.scores` to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mxfp4_validate.endpoint.attempt import InvalidResponse

Row = list[tuple[int, float | None]]


class Unreadable(InvalidResponse):
    """An answer that does not hold what was asked; `fault` is its name among `divergence.scores.FAULTS`."""

    def __init__(self, fault: str, message: str) -> None:
        super().__init__(f"{fault}: {message}")
        self.fault = fault


@dataclass(frozen=True)
class Positions:
    """What a server said of a run of positions. A null stays None.

    Attributes:
        tokens: the ids it says it scored, None where the protocol does not tell.
        chosen: their log-probabilities; top: (id, log-probability) of the most likely tokens of each, in the order given.
        texts: the tokens as it prints them, None where it does not.
    """

    tokens: list[int | None]
    chosen: list[float | None]
    top: list[Row]
    texts: list[str | None]


def joined(parts: Iterable[Positions]) -> Positions:
    """Neighbouring runs of positions as one."""
    whole = Positions([], [], [], [])
    for part in parts:
        whole.tokens.extend(part.tokens)
        whole.chosen.extend(part.chosen)
        whole.top.extend(part.top)
        whole.texts.extend(part.texts)
    return whole


@dataclass(frozen=True)
class Protocol:
    """One way to ask.

    Attributes:
        windows: whether a request can be limited to some positions; if not, a sequence is scored by one request.
        body: (model, tokens, first position, alternatives) -> the request, which scores every position from the first to the last token.
        read: (document, tokens, first position, alternatives) -> what it says of those positions.
    """

    name: str
    path: str
    windows: bool
    body: Callable[[str, Sequence[int], int, int], dict[str, Any]]
    read: Callable[[Any, Sequence[int], int, int], Positions]


def _sglang_body(model: str, tokens: Sequence[int], first: int, top: int) -> dict[str, Any]:
    """The answer begins with a boundary: the first position asked for has no log-probability, so one more is asked."""
    return {
        "input_ids": list(tokens), "sampling_params": {"temperature": 0.0, "max_new_tokens": 1, "ignore_eos": True}, "stream": False,
        "return_logprob": True, "logprob_start_len": first - 1, "top_logprobs_num": top, "return_text_in_logprobs": True,
    }  # fmt: skip


def _sglang_read(document: Any, tokens: Sequence[int], first: int, top: int) -> Positions:
    meta = _field(document, "meta_info", dict)
    reason = meta.get("finish_reason")
    if isinstance(reason, dict) and reason.get("type") == "abort":
        raise InvalidResponse(f"the server aborted the request: {str(reason.get('message'))[:300]}")
    _count("prompt tokens", meta.get("prompt_tokens"), len(tokens))
    entries, tops = _field(meta, "input_token_logprobs", list), _field(meta, "input_top_logprobs", list)
    want = len(tokens) - first
    for name, found in (("input_token_logprobs", entries), ("input_top_logprobs", tops)):
        if len(found) != want + 1:
            raise Unreadable("too-few-logprobs", f"{len(found)} entries of {name} for a boundary and {want} positions")
    scored = [_entry(entry, first + place) for place, entry in enumerate(entries[1:])]
    rows = [[_entry(item, first + place)[:2] for item in _alternatives(row, list)] for place, row in enumerate(tops[1:])]
    largest = max((*tokens, *(token for row in rows for token, _ in row)))
    ids: list[int | None] = [_sglang_id(entry[0], tokens[first + place], largest) for place, entry in enumerate(scored)]
    return Positions(ids, [e[1] for e in scored], rows, [e[2] for e in scored])


def _sglang_id(said: int, sent: int, largest: int) -> int:
    """SGLang (0.5.12.post1 at least) writes 0 for the id of its vocabulary's last token, whose log-probability it gives all the same.

    No id in the answer can be above the vocabulary's last. `divergence.scores.check` still holds the number against the alternatives.
    """
    return sent if said == 0 and sent == largest else said


def _entry(entry: Any, position: int) -> tuple[int, float | None, str | None]:
    """[log-probability, id, text] of SGLang as (id, log-probability, text)."""
    if not isinstance(entry, list) or len(entry) < 2 or not isinstance(entry[1], int):
        raise Unreadable("other-protocol", f"position {position}: {str(entry)[:80]} is not [logprob, token id, text]")
    text = entry[2] if len(entry) > 2 and isinstance(entry[2], str) else None
    return entry[1], _number(entry[0], position), text


def _vllm_body(model: str, tokens: Sequence[int], first: int, top: int) -> dict[str, Any]:
    return {"model": model, "prompt": list(tokens), "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": top, "stream": False}


def _vllm_read(document: Any, tokens: Sequence[int], first: int, top: int) -> Positions:
    choice = _choice(document, tokens)
    rows = _field(choice if "prompt_logprobs" in choice else document, "prompt_logprobs", list)
    if len(rows) != len(tokens):
        raise Unreadable("too-few-logprobs", f"{len(rows)} entries of prompt_logprobs for {len(tokens)} tokens")
    whole = Positions([], [], [], [])
    for position in range(first, len(tokens)):
        row = _alternatives(rows[position], dict)
        mine = row.get(str(tokens[position]))
        if not isinstance(mine, dict):
            raise Unreadable("other-tokens", f"position {position} does not list token {tokens[position]}, which was sent")
        ranked = sorted(row.items(), key=lambda item: _rank(item[1], position))
        whole.tokens.append(tokens[position])
        whole.chosen.append(_number(mine.get("logprob"), position))
        whole.top.append([(_id(name, position), _number(value.get("logprob"), position)) for name, value in ranked[:top]])
        whole.texts.append(mine.get("decoded_token"))
    return whole


def _rank(value: Any, position: int) -> int:
    rank = value.get("rank") if isinstance(value, dict) else None
    if not isinstance(rank, int):
        raise Unreadable("other-protocol", f"position {position}: {str(value)[:80]} has no rank")
    return rank


def _openai_body(model: str, tokens: Sequence[int], first: int, top: int) -> dict[str, Any]:
    return {
        "model": model, "prompt": list(tokens), "max_tokens": 1, "temperature": 0.0, "echo": True, "logprobs": top, "stream": False,
        "return_tokens_as_token_ids": True,
    }  # fmt: skip


def _openai_read(document: Any, tokens: Sequence[int], first: int, top: int) -> Positions:
    """Alternatives come as an object, which has no order, and with one more where the token itself is not among them."""
    logprobs = _field(_choice(document, tokens), "logprobs", dict)
    names, values, tops = (_field(logprobs, name, list) for name in ("tokens", "token_logprobs", "top_logprobs"))
    for name, found in (("tokens", names), ("token_logprobs", values), ("top_logprobs", tops)):
        if not len(tokens) <= len(found) <= len(tokens) + 1:  # the one token that was generated may follow
            raise Unreadable("too-few-logprobs", f"{len(found)} entries of {name} for {len(tokens)} tokens")
    whole = Positions([], [], [], [])
    for position in range(first, len(tokens)):
        row = [(_id(name, position), _number(value, position)) for name, value in _alternatives(tops[position], dict).items()]
        row.sort(key=lambda item: -item[1] if item[1] is not None and item[1] == item[1] else float("-inf"))  # NaN first, to be seen
        whole.tokens.append(_id(names[position], position))
        whole.chosen.append(_number(values[position], position))
        whole.top.append(row[:top])
        whole.texts.append(None)
    return whole


def _choice(document: Any, tokens: Sequence[int]) -> dict[str, Any]:
    choices = _field(document, "choices", list)
    if len(choices) != 1 or not isinstance(choices[0], dict):
        raise Unreadable("other-protocol", f"{len(choices)} choices in the answer, one was asked for")
    usage = document.get("usage")
    _count("prompt tokens", usage.get("prompt_tokens") if isinstance(usage, dict) else None, len(tokens))
    return choices[0]


def _count(what: str, said: Any, sent: int) -> None:
    if said is not None and said != sent:
        raise Unreadable("other-tokens", f"the server counts {said!r} {what}, {sent} were sent; does it add or cut tokens?")


def _id(name: Any, position: int) -> int:
    """`7` or `token_id:7`. A text is refused: two tokens may share one."""
    digits = str(name).removeprefix("token_id:")
    if not digits.isascii() or not digits.isdigit():
        raise Unreadable("named-by-text", f"position {position}: token {str(name)[:40]!r} is named by its text; ask by another protocol")
    return int(digits)


def _number(value: Any, position: int) -> float | None:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise Unreadable("other-protocol", f"position {position}: {str(value)[:40]!r} is not a log-probability")


def _field(document: Any, name: str, kind: type[Any]) -> Any:
    value = document.get(name) if isinstance(document, dict) else None
    if not isinstance(value, kind):
        raise Unreadable("other-protocol", f"{name} is a {type(value).__name__}, not a {kind.__name__}")
    return value


def _alternatives(row: Any, kind: type[Any]) -> Any:
    """A position's alternatives; a null is none at all."""
    return kind() if row is None else _field({"a position's alternatives": row}, "a position's alternatives", kind)


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("sglang", "/generate", True, _sglang_body, _sglang_read),
        Protocol("vllm", "/v1/completions", False, _vllm_body, _vllm_read),
        Protocol("openai", "/v1/completions", False, _openai_body, _openai_read),
    )
}
