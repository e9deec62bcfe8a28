"""Types for the ids that cross module boundaries, so that they cannot be mixed up."""

from typing import NewType

PeerId = NewType("PeerId", str)
"""libp2p peer id in base58, `12D3Koo...`; derived from an Ed25519 public key."""

SessionId = NewType("SessionId", str)
"""One generation, unique for ever; chosen by the coordinator."""

LeaseId = NewType("LeaseId", bytes)
"""16 random bytes: a node's right to draft for one session, across reconnects."""

SessionNo = NewType("SessionNo", int)
"""Number of a session on one link; dies with the link and is never reused on it."""

TreeNo = NewType("TreeNo", int)
"""Number of a node's tree within one session of one link, from 1."""

RoundNo = NewType("RoundNo", int)
"""Number of a verification round of one session, from 1."""
