"""Who is asking: API keys of the gateway's users."""

from dataclasses import dataclass
from typing import Protocol

from coordinator.gateway.ports import Refused, Volunteers

_MAX_KEY_CHARS = 256


class KnownKey(Protocol):
    """What the gateway needs to know of a key."""

    @property
    def key_id(self) -> str: ...

    @property
    def volunteers(self) -> Volunteers:
        """Who may draft for requests that do not say it themselves."""
        ...


class KeyLookup(Protocol):
    async def lookup(self, key: str) -> KnownKey | None:
        """The record of a secret; None when it is unknown or revoked."""
        ...


@dataclass(frozen=True, slots=True)
class Anonymous:
    """Everybody, where the gateway is open."""

    volunteers: Volunteers
    key_id: str = ""


class Authenticator:
    """Turns an Authorization header into a key.

    Without a lookup the gateway is open: everybody is the same anonymous key. Only a loopback bind
    or an explicit wish of the host may be served that way; the composition root sees to it.
    """

    def __init__(self, lookup: KeyLookup | None, open_volunteers: Volunteers = "any") -> None:
        self._lookup = lookup
        self._anonymous = Anonymous(open_volunteers)

    async def authenticate(self, authorization: str | None) -> KnownKey:
        """Raises Refused(401)."""
        if self._lookup is None:
            return self._anonymous
        scheme, _, secret = (authorization or "").partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not secret:
            raise Refused(
                401, "invalid_api_key", "No API key was given. Send 'Authorization: Bearer <key>'."
            )
        key = await self._lookup.lookup(secret) if len(secret) <= _MAX_KEY_CHARS else None
        if key is None:
            raise Refused(401, "invalid_api_key", "The API key is not known or was revoked.")
        return key
