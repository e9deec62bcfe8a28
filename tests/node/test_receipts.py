"""The book of receipts: nothing forged gets in, nothing in it changes unseen."""

import sqlite3
from pathlib import Path

import pytest

from node.receipts import ReceiptBook, ReceiptGap
from specedge_p2p.identity.keys import Identity
from specedge_p2p.identity.receipt import ReceiptError
from tests.support.receipt_chain import receipt_chain

NODE, COORDINATOR, OTHER = Identity.generate(), Identity.generate(), Identity.generate()


@pytest.fixture
def book(tmp_path: Path) -> ReceiptBook:
    return ReceiptBook(tmp_path / "receipts.sqlite3", NODE.peer_id)


def test_law5_receipt_is_kept_over_a_restart(tmp_path: Path) -> None:
    chain = receipt_chain(COORDINATOR, NODE.peer_id, 3)
    book = ReceiptBook(tmp_path / "r.sqlite3", NODE.peer_id)
    for envelope in chain:
        assert book.add(COORDINATOR.peer_id, envelope) is not None
    book.close()
    again = ReceiptBook(tmp_path / "r.sqlite3", NODE.peer_id)
    assert again.last_sequence(COORDINATOR.peer_id) == 3
    (total,) = again.totals()
    assert (total.num_receipts, total.num_accepted, total.micro_credits) == (3, 15, 15_000_000)
    assert [body.sequence for body in again.list()] == [3, 2, 1]
    assert [body.sequence for body in again.list(1)] == [3]
    assert again.audit() == ()
    again.close()


def test_the_same_receipt_again_changes_nothing(book: ReceiptBook) -> None:
    (envelope,) = receipt_chain(COORDINATOR, NODE.peer_id, 1)
    assert book.add(COORDINATOR.peer_id, envelope) is not None
    assert book.add(COORDINATOR.peer_id, envelope) is None
    assert book.totals()[0].num_receipts == 1
    book.close()


def test_chains_of_two_coordinators_stand_side_by_side(book: ReceiptBook) -> None:
    for signer in (COORDINATOR, OTHER):
        for envelope in receipt_chain(signer, NODE.peer_id, 2):
            book.add(signer.peer_id, envelope)
    assert len(book.totals()) == 2
    assert book.audit() == ()
    book.close()


def test_law5_receipt_that_is_forged_foreign_or_out_of_chain_is_refused(book: ReceiptBook) -> None:
    chain = receipt_chain(COORDINATOR, NODE.peer_id, 3)
    book.add(COORDINATOR.peer_id, chain[0])
    bad = {
        "signed by another": receipt_chain(OTHER, NODE.peer_id, 2)[1],
        "for another node": receipt_chain(COORDINATOR, OTHER.peer_id, 2)[1],
        "another past": receipt_chain(COORDINATOR, NODE.peer_id, 2, num_accepted=9)[1],
        "equal number, other content": receipt_chain(COORDINATOR, NODE.peer_id, 1, 9)[0],
        "noise": b"\x93abc",
    }
    for name, envelope in bad.items():
        with pytest.raises(ReceiptError):
            book.add(COORDINATOR.peer_id, envelope)
        assert book.last_sequence(COORDINATOR.peer_id) == 1, name
    with pytest.raises(ReceiptGap) as gap:
        book.add(COORDINATOR.peer_id, chain[2])
    assert gap.value.last_sequence == 1
    book.close()


def test_law5_receipt_book_that_was_tampered_with_fails_the_audit(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite3"
    book = ReceiptBook(path, NODE.peer_id)
    for envelope in receipt_chain(COORDINATOR, NODE.peer_id, 4):
        book.add(COORDINATOR.peer_id, envelope)
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE receipts SET num_accepted = 500 WHERE sequence = 2")
    raw.close()
    assert [(f.sequence, f.problem) for f in book.audit()] == [(2, "the book says something else")]
    with sqlite3.connect(path) as raw:
        raw.execute("DELETE FROM receipts WHERE sequence = 2")
    raw.close()
    assert [f.sequence for f in book.audit()] == [3]
    book.close()
