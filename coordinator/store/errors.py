"""What the store says when it cannot do its work."""

from specedge_p2p.errors import ClearError


class StoreError(ClearError):
    """One line for a person: what is wrong with the database and what to do about it."""


class StoreUnavailable(StoreError):
    """The database cannot be written or read now (full disk, lost server); trying again may help.

    Whether the last operation became durable is unknown, so it must be repeated under the same
    idempotency keys.
    """
