"""Who is asking: API keys, known only by their digest."""

import hashlib
import logging
from dataclasses import dataclass
from typing import Protocol

from coordinator.gateway.ports import Refused, Volunteers
from specedge_p2p.errors import ClearError

_logger = logging.getLogger(__name__)

RETRY_S = 2.0
_MAX_SECRET_CHARS = 256


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as the gateway sees it; the secret itself is never stored."""

    id: str
    label: str
    volunteers: Volunteers = "any"
    """Who may draft for requests that do not say it themselves."""


class KeyLookup(Protocol):
    async def lookup(self, digest: bytes) -> ApiKey | None:
        """The live key with this SHA-256 digest; None when unknown or revoked.

        Raises ClearError where that cannot be found out now.
        """
        ...


def secret_digest(secret: str) -> bytes:
    """SHA-256. Plain, since 256 random bits leave nothing to guess or to salt."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


class Authenticator:
    """Turns an Authorization header into a key.

    Without a lookup the gateway is open: everybody is the same anonymous key. Only a loopback bind
    or an explicit wish of the host may be served that way; the composition root sees to it.
    """

    def __init__(self, lookup: KeyLookup | None, open_volunteers: Volunteers = "any") -> None:
        self._lookup = lookup
        self._anonymous = ApiKey(id="", label="open", volunteers=open_volunteers)

    async def authenticate(self, authorization: str | None) -> ApiKey:
        """Raises Refused(401), Refused(503)."""
        if self._lookup is None:
            return self._anonymous
        scheme, _, secret = (authorization or "").partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not secret:
            raise Refused(
                401, "invalid_api_key", "No API key was given. Send 'Authorization: Bearer <key>'."
            )
        key = None
        if len(secret) <= _MAX_SECRET_CHARS:
            try:
                key = await self._lookup.lookup(secret_digest(secret))
            except ClearError as error:
                _logger.error("a request is turned away: %s", error)
                text = "API keys cannot be looked up now. Try again."
                raise Refused(503, "not_ready", text, retry_after_s=RETRY_S) from error
        if key is None:
            raise Refused(401, "invalid_api_key", "The API key is not known or was revoked.")
        return key
