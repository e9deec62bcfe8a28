"""The book of receipts: nothing forged gets in, nothing in it changes unseen."""

import logging
import sqlite3
from math import inf, nan
from pathlib import Path

import pytest

from node.receipts import BookError, ReceiptBook, ReceiptGap
from specedge_p2p.identity.keys import Identity
from specedge_p2p.identity.receipt import ReceiptError
from tests.support.full_book import fill_disk, free_disk
from tests.support.receipt_chain import dated_receipt, receipt_chain

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


@pytest.mark.parametrize("issued_at_s", [nan, inf, 1e20, -1.0])
def test_law4_receipt_of_an_impossible_date_is_one_receipt_error(
    book: ReceiptBook, issued_at_s: float
) -> None:
    with pytest.raises(ReceiptError):
        book.add(COORDINATOR.peer_id, dated_receipt(COORDINATOR, NODE.peer_id, issued_at_s))
    assert book.list() == ()
    book.close()


def test_what_is_no_receipt_any_more_hides_no_other(
    book: ReceiptBook, caplog: pytest.LogCaptureFixture
) -> None:
    (good,) = receipt_chain(COORDINATOR, NODE.peer_id, 1)
    book.add(COORDINATOR.peer_id, good)
    bad = dated_receipt(OTHER, NODE.peer_id, inf)
    book._db.execute(
        "INSERT INTO receipts VALUES (?, 1, ?, 's', 5, 5, ?)", (OTHER.peer_id, bad, inf)
    )
    with caplog.at_level(logging.WARNING):
        assert [body.coordinator for body in book.list()] == [COORDINATOR.peer_id]
    assert f"receipt 1 of {OTHER.peer_id} cannot be shown" in caplog.text
    assert [finding.coordinator for finding in book.audit()] == [OTHER.peer_id]
    book.close()


def test_absurd_figures_are_added_up(book: ReceiptBook) -> None:
    most = 2**62 // 1_000_000
    for envelope in receipt_chain(COORDINATOR, NODE.peer_id, 3, num_accepted=most):
        book.add(COORDINATOR.peer_id, envelope)
    (total,) = book.totals()
    assert (total.num_accepted, total.micro_credits) == (3 * most, 3 * most * 1_000_000)
    assert total.micro_credits > 2**63
    book.close()


def add_all(book: ReceiptBook, chain: list[bytes]) -> None:
    for envelope in chain:
        book.add(COORDINATOR.peer_id, envelope)


def test_a_full_disk_is_a_clear_error_and_costs_no_receipt(book: ReceiptBook) -> None:
    chain = receipt_chain(COORDINATOR, NODE.peer_id, 50)
    fill_disk(book)
    with pytest.raises(BookError, match=r"full.*make room on its disk"):
        add_all(book, chain)
    assert book.last_sequence(COORDINATOR.peer_id) < 50
    free_disk(book)
    add_all(book, chain)
    assert book.totals()[0].num_receipts == 50
    assert book.audit() == ()
    book.close()


def test_a_file_that_is_no_book_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "receipts.sqlite3"
    path.write_bytes(b"garbage " * 1024)
    with pytest.raises(BookError, match=f"{path} cannot be used.*move it away"):
        ReceiptBook(path, NODE.peer_id)
    with pytest.raises(BookError, match="see who may write it"):
        ReceiptBook(tmp_path / "no" / "such" / "folder", NODE.peer_id)


def test_a_book_with_broken_pages_is_a_clear_error_in_use(tmp_path: Path) -> None:
    path = tmp_path / "receipts.sqlite3"
    book = ReceiptBook(path, NODE.peer_id)
    for envelope in receipt_chain(COORDINATOR, NODE.peer_id, 50):
        book.add(COORDINATOR.peer_id, envelope)
    book.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xa5" * (len(whole) - 4096))
    broken = ReceiptBook(path, NODE.peer_id)
    for use in (
        lambda: broken.last_sequence(COORDINATOR.peer_id),
        broken.list,
        broken.totals,
        broken.audit,
    ):
        with pytest.raises(BookError, match="move it away"):
            use()
    broken.close()
