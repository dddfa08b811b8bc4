"""How many requests may be in flight, when to stop asking, and when to ask again."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType


class Limiter:
    """At most `limit` at a time. A 429 halves the limit; `limit` successes in a row give one back, up to the ceiling."""

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.limit = ceiling
        self._running = 0
        self._good = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def __aenter__(self) -> None:
        while self._running >= self.limit:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                else:
                    self._wake()  # the turn was ours already; pass it on
                raise
        self._running += 1

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._running -= 1
        self._wake()

    def throttle(self) -> None:
        """The server said it has too much to do."""
        self.limit, self._good = max(1, self.limit // 2), 0

    def success(self) -> None:
        self._good += 1
        if self._good >= self.limit and self.limit < self.ceiling:
            self.limit, self._good = self.limit + 1, 0
            self._wake()

    def _wake(self) -> None:
        for _ in range(self.limit - self._running):
            if not self._waiting:
                return
            self._waiting.popleft().set_result(None)


@dataclass(frozen=True)
class RetryPolicy:
    """One layer of retries. A timeout is never asked again by itself: re-rolling long answers would favour short ones.

    Attributes:
        budget: seconds of waiting a sample may spend on retries; attempts: how often at most, 429 not counted.
        invalid: how often an answer that cannot be read is asked again.
        first, most: seconds of the first and the longest pause; pauses double and carry up to a quarter of jitter.
    """

    budget: float = 600.0
    attempts: int = 6
    invalid: int = 1
    first: float = 1.0
    most: float = 60.0

    def pause(self, number: int, asked: float | None, rng: random.Random) -> float:
        """Seconds before attempt `number` + 1; what the server asked for wins."""
        base: float = asked if asked is not None else min(self.most, self.first * 2 ** min(number - 1, 20))
        return base * (1 + 0.25 * rng.random())


@dataclass
class Breaker:
    """Opens after `threshold` failures in a row without a success between them; while it is open nothing is asked.

    `closed` is set while requests may go out; `gave_up` says why the run stopped asking for good.
    """

    threshold: int
    failures: int = 0
    outages: int = 0
    gave_up: str = ""
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.closed.set()

    def success(self) -> None:
        self.failures = 0

    def failure(self) -> bool:
        """Count one; True if it opened the breaker just now."""
        self.failures += 1
        if self.failures >= self.threshold and self.closed.is_set():
            self.closed.clear()
            self.outages += 1
            return True
        return False

    def close(self) -> None:
        self.failures = 0
        self.closed.set()

    def give_up(self, why: str) -> None:
        self.gave_up = self.gave_up or why
        self.closed.set()  # whoever waits finds the reason


class Speed:
    """Deadlines from the speed seen: a request may take `slack` times what the cap needs at the slowest speed among recent answers.

    Time in the server's queue is part of the speed seen, so a busy server lengthens deadlines by itself.
    """

    def __init__(self, fixed: float | None, floor: float = 600.0, slack: float = 2.0, assumed: float = 5.0) -> None:
        self._fixed, self._floor, self._slack, self._assumed = fixed, floor, slack, assumed
        self._seen: deque[float] = deque(maxlen=256)

    def saw(self, tokens: int | None, seconds: float) -> None:
        if tokens and tokens >= 32 and seconds > 0:  # a few tokens measure latency, not speed
            self._seen.append(tokens / seconds)

    def deadline(self, max_tokens: int) -> float:
        """Seconds a request with that cap may take."""
        if self._fixed is not None:
            return self._fixed
        slowest = min(self._seen) if len(self._seen) >= 8 else self._assumed
        return max(self._floor, self._slack * max_tokens / min(slowest, 1000.0))
