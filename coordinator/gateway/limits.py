"""How much one caller may ask: requests per minute and generations at once."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from coordinator.gateway.ports import Refused

_CONCURRENCY_RETRY_AFTER_S = 1


@dataclass(frozen=True, slots=True)
class LimitSettings:
    requests_per_minute: int = 600
    """Per API key, or per address where there are no keys. 0: no limit."""
    max_concurrent: int = 64
    """Generations of one caller at the same time. 0: no limit."""


class RequestLimits:
    """Counts in memory, so per process; two counters a caller, forgotten as windows pass."""

    def __init__(self, settings: LimitSettings) -> None:
        self._settings = settings
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._running: Counter[str] = Counter()

    def hit(self, caller: str) -> None:
        """Count one request. Raises Refused(429) with the time to wait."""
        if self._settings.requests_per_minute == 0:
            return
        item = RateLimitItemPerMinute(self._settings.requests_per_minute)
        if self._limiter.hit(item, caller):
            return
        wait_s = self._limiter.get_window_stats(item, caller).reset_time - time.time()
        raise Refused(
            429,
            "rate_limit_exceeded",
            f"More than {self._settings.requests_per_minute} requests a minute.",
            retry_after_s=max(1.0, wait_s),
        )

    @contextmanager
    def running(self, caller: str) -> Iterator[None]:
        """Hold one of the caller's places. Raises Refused(429) when all are taken."""
        limit = self._settings.max_concurrent
        if limit and self._running[caller] >= limit:
            raise Refused(
                429,
                "rate_limit_exceeded",
                f"{limit} requests of this caller are running already.",
                retry_after_s=_CONCURRENCY_RETRY_AFTER_S,
            )
        self._running[caller] += 1
        try:
            yield
        finally:
            self._running[caller] -= 1
            if not self._running[caller]:
                del self._running[caller]
