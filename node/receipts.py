"""The receipts a node holds, on disk: one unbroken chain per coordinator, in SQLite.

A receipt is kept only if its signature is the coordinator's, it is made out to this node and it
continues the chain. So whatever is in the book can be shown to anybody.
"""

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Final

from specedge_p2p.errors import ClearError
from specedge_p2p.identity.receipt import (
    FIRST_PREVIOUS,
    ReceiptBody,
    ReceiptError,
    check,
    read_body,
    receipt_hash,
)
from specedge_p2p.names import PeerId

log = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS receipts (
    coordinator TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    envelope BLOB NOT NULL,
    session_id TEXT NOT NULL,
    num_accepted INTEGER NOT NULL,
    micro_credits INTEGER NOT NULL,
    issued_at_s REAL NOT NULL,
    PRIMARY KEY (coordinator, sequence)
) STRICT
"""

_START_ANEW: Final = "move it away, and coordinators are asked for their receipts again"
_WHAT_TO_DO: Final = {
    sqlite3.SQLITE_FULL: "make room on its disk",
    sqlite3.SQLITE_BUSY: "another program holds it",
    sqlite3.SQLITE_READONLY: "see who may write it",
    sqlite3.SQLITE_CANTOPEN: "see who may write it",
    sqlite3.SQLITE_CORRUPT: _START_ANEW,
    sqlite3.SQLITE_NOTADB: _START_ANEW,
}
_PRIMARY: Final = 0xFF
"""The bits of SQLite's error code that say what is wrong; the others say where."""


class BookError(ClearError):
    """The book's file cannot be read or written: a full disk, say, or it is not a book."""


class ReceiptGap(Exception):
    """Receipts before this one are missing; ask for those after `last_sequence`."""

    def __init__(self, last_sequence: int) -> None:
        super().__init__(f"receipts after {last_sequence} are missing")
        self.last_sequence = last_sequence


@dataclass(frozen=True, slots=True)
class CoordinatorTotal:
    """What one coordinator owes this node, by its own signature."""

    coordinator: PeerId
    num_receipts: int
    num_accepted: int
    micro_credits: int


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with a stored receipt."""

    coordinator: PeerId
    sequence: int
    problem: str


class ReceiptBook:
    """The book of one node. Methods block for a disk write; safe to call from several threads."""

    def __init__(self, path: Path | None, node: PeerId) -> None:
        """`path` None keeps the book in memory. Raises BookError, as every method does."""
        self._node = node
        self._name = ":memory:" if path is None else str(path)
        self._lock = Lock()
        with _clear(self._name):
            self._db = sqlite3.connect(self._name, check_same_thread=False, isolation_level=None)
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                self._db.execute(_SCHEMA)
            except sqlite3.DatabaseError:
                self._db.close()
                raise

    def close(self) -> None:
        self._db.close()

    def last_sequence(self, coordinator: PeerId) -> int:
        """Number of the last receipt held; 0 for none."""
        with self._locked() as db:
            return _last(db, coordinator)

    def add(self, coordinator: PeerId, envelope: bytes) -> ReceiptBody | None:
        """Check a receipt and keep it; None when it is held already.

        Raises ReceiptError when it is forged or contradicts the book, ReceiptGap when receipts
        before it are missing. Nothing is stored then.
        """
        body = check(
            envelope, node=self._node, coordinator=coordinator, previous_hash=None, sequence=None
        )
        with self._locked() as db:
            last = _last(db, coordinator)
            if body.sequence <= last:
                if _envelope(db, coordinator, body.sequence) != envelope:
                    raise ReceiptError(f"contradicts receipt {body.sequence}, signed before")
                return None
            if body.sequence > last + 1:
                raise ReceiptGap(last)
            previous = _envelope(db, coordinator, last)
            previous_hash = FIRST_PREVIOUS if previous is None else receipt_hash(previous)
            if body.previous != previous_hash:
                raise ReceiptError("does not follow the receipt before it")
            db.execute(
                "INSERT INTO receipts VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    coordinator,
                    body.sequence,
                    envelope,
                    body.session_id,
                    body.num_accepted,
                    body.micro_credits,
                    body.issued_at_s,
                ),
            )
        return body

    def list(self, limit: int = 100) -> tuple[ReceiptBody, ...]:
        """The newest receipts first; one that is no receipt any more costs a warning."""
        with self._locked() as db:
            rows = db.execute(
                "SELECT coordinator, sequence, envelope FROM receipts"
                " ORDER BY issued_at_s DESC, sequence DESC LIMIT ?",
                (limit,),
            ).fetchall()
        bodies = []
        for coordinator, sequence, envelope in rows:
            try:
                bodies.append(read_body(envelope))
            except ReceiptError as error:
                log.warning("receipt %d of %s cannot be shown: %s", sequence, coordinator, error)
        return tuple(bodies)

    def totals(self) -> tuple[CoordinatorTotal, ...]:
        """Added up here: SQLite's own sum fails where a coordinator signs absurd figures."""
        totals: dict[str, CoordinatorTotal] = {}
        with self._locked() as db:
            rows = db.execute(
                "SELECT coordinator, num_accepted, micro_credits FROM receipts ORDER BY coordinator"
            )
            for coordinator, num_accepted, micro_credits in rows:
                before = totals.get(coordinator, CoordinatorTotal(PeerId(coordinator), 0, 0, 0))
                totals[coordinator] = CoordinatorTotal(
                    before.coordinator,
                    before.num_receipts + 1,
                    before.num_accepted + num_accepted,
                    before.micro_credits + micro_credits,
                )
        return tuple(totals.values())

    def audit(self) -> tuple[Finding, ...]:
        """Check every signature, number, link and figure again; empty when all is well."""
        with self._locked() as db:
            rows = db.execute(
                "SELECT coordinator, sequence, envelope, num_accepted, micro_credits"
                " FROM receipts ORDER BY coordinator, sequence"
            ).fetchall()
        findings = []
        chain = (PeerId(""), 0, FIRST_PREVIOUS)
        for coordinator, sequence, envelope, num_accepted, micro_credits in rows:
            if coordinator != chain[0]:
                chain = (PeerId(coordinator), 0, FIRST_PREVIOUS)
            try:
                body = check(
                    envelope,
                    node=self._node,
                    coordinator=chain[0],
                    previous_hash=chain[2],
                    sequence=chain[1] + 1,
                )
            except ReceiptError as error:
                findings.append(Finding(chain[0], sequence, str(error)))
            else:
                stored = (sequence, num_accepted, micro_credits)
                if stored != (body.sequence, body.num_accepted, body.micro_credits):
                    findings.append(Finding(chain[0], sequence, "the book says something else"))
            chain = (chain[0], sequence, receipt_hash(envelope))
        return tuple(findings)

    @contextmanager
    def _locked(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _clear(self._name):
            yield self._db


@contextmanager
def _clear(name: str) -> Iterator[None]:
    """What SQLite says of the book's file, as a BookError."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & _PRIMARY
        advice = f": {_WHAT_TO_DO[code]}" if code in _WHAT_TO_DO else ""
        raise BookError(f"the receipts in {name} cannot be used ({error}){advice}") from error


def _last(db: sqlite3.Connection, coordinator: PeerId) -> int:
    row = db.execute(
        "SELECT coalesce(max(sequence), 0) FROM receipts WHERE coordinator = ?", (coordinator,)
    ).fetchone()
    return int(row[0])


def _envelope(db: sqlite3.Connection, coordinator: PeerId, sequence: int) -> bytes | None:
    row = db.execute(
        "SELECT envelope FROM receipts WHERE coordinator = ? AND sequence = ?",
        (coordinator, sequence),
    ).fetchone()
    return None if row is None else bytes(row[0])
