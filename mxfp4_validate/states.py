"""How a sample can end. Every sample ends in exactly one of these, and only the first group is ever scored."""

from __future__ import annotations

ANSWERED = "answered"  # the model stopped and an answer could be extracted
NO_ANSWER = "no_answer"  # it stopped, nothing could be extracted
TRUNCATED = "truncated"  # finish_reason length: the token cap was hit
EMPTY = "empty"  # it stopped with empty content (reasoning may be there)
SERVER_ERROR = "server_error"  # HTTP 5xx, 429 or an unusable 4xx, after all retries
TRANSPORT_ERROR = "transport_error"  # no connection, a reset, a body cut short
TIMEOUT = "timeout"  # idle or deadline passed
INVALID_RESPONSE = "invalid_response"  # HTTP 200 that is not a chat completion
ABORTED = "aborted"  # the server said finish_reason abort, or we were stopped
NOT_RUN = "not_run"  # planned, and never asked

#: Outcomes of the model: they count, right or wrong.
MODEL_STATES = (ANSWERED, NO_ANSWER, TRUNCATED, EMPTY)
#: Missing: never scored, always asked again on resume.
MISSING_STATES = (SERVER_ERROR, TRANSPORT_ERROR, TIMEOUT, INVALID_RESPONSE, ABORTED, NOT_RUN)
STATES = MODEL_STATES + MISSING_STATES
