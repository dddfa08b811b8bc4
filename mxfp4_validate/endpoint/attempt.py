"""What one HTTP request came to. An attempt is a fact that is kept; what becomes of the sample is decided from its attempts."""

from __future__ import annotations

from dataclasses import dataclass, field

from mxfp4_validate import states


@dataclass(frozen=True)
class Reply:
    """A chat completion that could be read.

    Attributes:
        content, reasoning: the message's two texts, "" if absent.
        finish_reason: as the server said it, "" if it said nothing.
        prompt_tokens, completion_tokens, reasoning_tokens: None where the server gave no usable number; never 0 instead.
        model: the model the server says it used.
        flags: departures worth a reader's attention, e.g. `finish-reason-unknown`, `over-max-tokens`.
    """

    content: str
    reasoning: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    reasoning_tokens: int | None
    model: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Attempt:
    """One request.

    Attributes:
        outcome: `ok`, or one of the missing states.
        retry: `free` (no token can have been generated), `reroll` (the server may have answered already), `no` (would fail again).
        fatal: why no request of this run can succeed (wrong key, wrong path), or "".
        retry_after: seconds the server asked to wait.
    """

    outcome: str
    reply: Reply | None = None
    status: int = 0
    error: str = ""
    retry: str = "no"
    fatal: str = ""
    retry_after: float | None = None
    seconds: float = 0.0
    boot: str = ""
    flags: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        return self.outcome == "ok"


class InvalidResponse(Exception):
    """An HTTP 200 that is not a chat completion; the text says how, with the head of the body."""


#: Status -> (state, retry, fatal). 5xx, 408 and 429 come and go; a 4xx will be the same next time.
STATUS: dict[int, tuple[str, str, str]] = {
    401: (states.SERVER_ERROR, "no", "the server refuses the key (HTTP 401); set OPENAI_API_KEY"),
    403: (states.SERVER_ERROR, "no", "the server refuses access (HTTP 403); check OPENAI_API_KEY and the server's rules"),
    404: (states.SERVER_ERROR, "no", "no /v1/chat/completions there (HTTP 404); must --base-url end in /v1, or is the model's name wrong?"),
    405: (states.SERVER_ERROR, "no", "the server takes no POST at /v1/chat/completions (HTTP 405); check --base-url"),
    408: (states.SERVER_ERROR, "free", ""),
    429: (states.SERVER_ERROR, "free", ""),
}


def of_status(status: int, body: str, retry_after: float | None) -> Attempt:
    """An attempt that ended with an HTTP status other than 200. `body` is redacted text."""
    head = " ".join(body.split())[:500] or "(empty body)"
    state, retry, fatal = STATUS.get(status, (states.SERVER_ERROR, "reroll" if status >= 500 else "no", ""))
    if 300 <= status < 400:
        fatal = f"the server redirects (HTTP {status}), which is not followed; give the final address in --base-url"
    flags: tuple[str, ...] = ()
    if status == 400 and "nan" in body.lower() and ("json compliant" in body.lower() or "out of range float" in body.lower()):
        flags = ("nan-output",)
    elif 400 <= status < 500 and status not in STATUS:
        flags = ("invalid-request",)
    return Attempt(state, status=status, error=f"HTTP {status}: {head}", retry=retry, fatal=fatal, retry_after=retry_after, flags=flags)
