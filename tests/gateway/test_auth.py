import hashlib

import pytest

from coordinator.gateway.auth import ApiKey, Authenticator, new_secret, secret_digest
from coordinator.gateway.ports import Refused
from tests.support.gateways import FakeKeys


def test_secrets_are_long_and_never_the_same() -> None:
    first, second = new_secret(), new_secret()
    assert first != second
    assert first.startswith("sk-")
    assert len(first) >= 45
    assert secret_digest(first) == hashlib.sha256(first.encode()).digest()


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic good", "good", "Bearer no"]
)
async def test_refuses(header: str | None) -> None:
    with pytest.raises(Refused) as caught:
        await Authenticator(FakeKeys(good=ApiKey("k", "label"))).authenticate(header)
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")


@pytest.mark.parametrize("header", ["Bearer good", "bearer  good "])
async def test_takes(header: str) -> None:
    key = ApiKey("k", "label", "none")
    assert await Authenticator(FakeKeys(good=key)).authenticate(header) is key


async def test_open_gateway_asks_for_nothing() -> None:
    key = await Authenticator(None, open_volunteers="none").authenticate(None)
    assert (key.id, key.volunteers) == ("", "none")
