import pytest

from coordinator.gateway.limits import LimitSettings, RequestLimits
from coordinator.gateway.ports import Refused


def test_each_caller_has_its_own_count() -> None:
    limits = RequestLimits(LimitSettings(requests_per_minute=1))
    limits.hit("a")
    limits.hit("b")
    with pytest.raises(Refused) as caught:
        limits.hit("a")
    assert caught.value.status == 429
    assert caught.value.retry_after_s >= 1


def test_zero_means_no_limit() -> None:
    limits = RequestLimits(LimitSettings(requests_per_minute=0, max_concurrent=0))
    for _ in range(1000):
        limits.hit("a")
    with limits.running("a"), limits.running("a"):
        pass


def test_a_place_is_given_back_also_after_an_error() -> None:
    limits = RequestLimits(LimitSettings(max_concurrent=1))
    with pytest.raises(ZeroDivisionError), limits.running("a"):
        raise ZeroDivisionError
    with limits.running("a"):
        with pytest.raises(Refused), limits.running("a"):
            pass
        with limits.running("b"):
            pass
    assert not limits._running
