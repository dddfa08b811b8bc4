"""Bytes of an HTTP 200 to a `Reply`, or `InvalidResponse`: nothing is guessed, nothing missing becomes a zero or an empty answer."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from mxfp4_validate.endpoint.attempt import InvalidResponse, Reply

#: A count from here on is no count; SQLite holds 64 bits.
MOST_TOKENS = 1 << 40
FINISH_REASONS = ("stop", "length", "abort", "content_filter", "tool_calls")


def loads(body: bytes) -> Any:
    """Strict JSON: no NaN, no infinity, and no crash on deep nesting."""
    try:
        return json.loads(body.decode("utf-8", "surrogatepass"), parse_constant=_not_json)
    except UnicodeDecodeError as error:
        raise InvalidResponse(f"the body is not UTF-8: {error.reason}") from error
    except RecursionError as error:
        raise InvalidResponse("the body's JSON is nested too deeply") from error
    except ValueError as error:
        raise InvalidResponse(_describe(body, error)) from error


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _describe(body: bytes, error: ValueError) -> str:
    text = body[:20_000].decode("utf-8", "replace")
    title = re.search(r"<title[^>]*>([^<]{0,200})", text, re.IGNORECASE)
    if text.lstrip()[:1] == "<":
        return f"not JSON, looks like HTML: {title[1].strip() if title else text.strip()[:100]}"
    return f"not JSON ({error}); it begins {text[:500]!r}"


def parse_completion(body: bytes, max_tokens: int) -> Reply:
    """A non-streamed chat completion with exactly one choice."""
    data = loads(body)
    if not isinstance(data, dict):
        raise InvalidResponse(f"the body is a JSON {type(data).__name__}, not an object")
    choices = data.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        found = len(choices) if isinstance(choices, list) else "no"
        raise InvalidResponse(
            f"{found} choices in the answer, one was asked for; the body begins {body[:300].decode('utf-8', 'replace')!r}"
        )
    choice = choices[0]
    if choice.get("index", 0) != 0:
        raise InvalidResponse(f"the only choice has index {choice.get('index')!r}, not 0")
    message = choice.get("message")
    if not isinstance(message, dict):
        raise InvalidResponse("the choice holds no message")
    content, reasoning = text_of(message, "content"), text_of(message, "reasoning_content") or text_of(message, "reasoning")
    return build_reply(content, reasoning, choice.get("finish_reason"), data.get("usage"), data.get("model"), max_tokens)


def build_reply(content: str, reasoning: str, finish: Any, usage: Any, model: Any, max_tokens: int) -> Reply:
    """The reply from its parts, streamed or not, with everything odd about it named in `flags`."""
    flags = []
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("completion_tokens_details")
    completion = _count(usage.get("completion_tokens"), positive=True)
    thought = _count(details.get("reasoning_tokens") if isinstance(details, dict) else None)
    if thought is None:
        thought = _count(usage.get("reasoning_tokens"))
    if completion is None:
        flags.append("tokens-unknown")
    elif completion > max_tokens:
        flags.append("over-max-tokens")
    reason = finish if isinstance(finish, str) else ""
    if reason not in FINISH_REASONS:
        flags.append("finish-reason-unknown" if reason else "finish-reason-missing")
    if "<think>" in content:
        flags.append("think-in-content")
    prompt = _count(usage.get("prompt_tokens"), positive=True)
    return Reply(content, reasoning, reason, prompt, completion, thought, model if isinstance(model, str) else "", tuple(flags))


def text_of(message: dict[str, Any], name: str) -> str:
    """A text of a message or delta, "" if it has none."""
    value = message.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidResponse(f"the message's {name} is a {type(value).__name__}, not a text")
    return value


def _count(value: Any, positive: bool = False) -> int | None:
    """A token count; None for anything that cannot be one."""
    good = isinstance(value, int) and not isinstance(value, bool) and (1 if positive else 0) <= value < MOST_TOKENS
    return value if good else None
