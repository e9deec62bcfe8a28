"""Addresses given by hand at which no coordinator answers: told once, with what to check."""

import logging
from collections.abc import Iterable

log = logging.getLogger(__name__)

WHAT_TO_CHECK = "check the address that the coordinator prints at its start"


class GivenAddresses:
    """Says of each at its first failure what is wrong there.

    One that has answered was right: what it lacks later, the coordinator lacks.
    """

    def __init__(self, addresses: Iterable[str]) -> None:
        self._unproven = set(addresses)

    def missed(self, address: str, reason: str) -> None:
        if address in self._unproven:
            self._unproven.discard(address)
            log.warning("%s: %s; %s", address, reason, WHAT_TO_CHECK)

    def answered(self, address: str) -> None:
        self._unproven.discard(address)
