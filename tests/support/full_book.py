"""A node's book of receipts whose disk is full for a while; SQLite itself refuses to grow it."""

from node.receipts import ReceiptBook


def fill_disk(book: ReceiptBook) -> None:
    book._db.execute("PRAGMA max_page_count = 1")  # SQLite takes it as: what is there already


def free_disk(book: ReceiptBook) -> None:
    book._db.execute("PRAGMA max_page_count = 1000000")
