"""The tables, as SQLAlchemy Core metadata. They are created by the migrations alone.

Money is whole micro-credits and times are whole milliseconds since 1970: every number is an exact
integer, because PostgreSQL would silently round 1.5 to 2 in a bigint column.
"""

from typing import Any

import sqlalchemy as sa

INT64_MAX = 2**63 - 1


class ExactInt(sa.TypeDecorator[int]):
    """A 64-bit integer column that takes nothing but `int`: no bool, no float, no Decimal."""

    impl = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> int | None:  # noqa: ANN401
        if value is None:
            return None
        if type(value) is not int:
            raise TypeError(f"expected int, got {type(value).__name__}")
        if not -INT64_MAX <= value <= INT64_MAX:
            raise OverflowError(f"{value} does not fit into 64 bits")
        return value

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> int | None:  # noqa: ANN401
        return None if value is None else int(value)


METADATA = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

accounts = sa.Table(
    "accounts",
    METADATA,
    sa.Column("id", ExactInt, primary_key=True, autoincrement=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("balance", ExactInt, nullable=False),
    sa.Column("allow_negative", ExactInt, nullable=False),
    sa.CheckConstraint("balance >= 0 OR allow_negative = 1", name="not_overdrawn"),
    sa.CheckConstraint("allow_negative IN (0, 1)", name="allow_negative_is_flag"),
    sqlite_strict=True,
)

contributions = sa.Table(
    "contributions",
    METADATA,
    sa.Column("id", ExactInt, primary_key=True, autoincrement=True),
    sa.Column("session_id", sa.Text, nullable=False),
    sa.Column("peer_id", sa.Text, nullable=False),
    sa.Column("segment", ExactInt, nullable=False),
    sa.Column("num_accepted", ExactInt, nullable=False),
    sa.Column("num_credited", ExactInt, nullable=False),
    sa.Column("recorded_at_ms", ExactInt, nullable=False, index=True),
    sa.UniqueConstraint("session_id", "peer_id", "segment"),
    sa.CheckConstraint("segment >= 0", name="segment_not_negative"),
    sa.CheckConstraint(
        "num_credited >= 0 AND num_credited <= num_accepted", name="credited_within_accepted"
    ),
    sqlite_strict=True,
)

transfers = sa.Table(
    "transfers",
    METADATA,
    sa.Column("id", ExactInt, primary_key=True, autoincrement=True),
    sa.Column("idempotency_key", sa.Text, nullable=False, unique=True),
    sa.Column("debit_account_id", ExactInt, sa.ForeignKey("accounts.id"), nullable=False),
    sa.Column("credit_account_id", ExactInt, sa.ForeignKey("accounts.id"), nullable=False),
    sa.Column("micro_credits", ExactInt, nullable=False),
    sa.Column("recorded_at_ms", ExactInt, nullable=False),
    sa.CheckConstraint("micro_credits > 0", name="amount_positive"),
    sa.CheckConstraint("debit_account_id <> credit_account_id", name="two_accounts"),
    sqlite_strict=True,
)

receipts = sa.Table(
    "receipts",
    METADATA,
    sa.Column("id", ExactInt, primary_key=True, autoincrement=True),
    sa.Column("contribution_id", ExactInt, sa.ForeignKey("contributions.id"), nullable=False),
    sa.Column("coordinator", sa.Text, nullable=False),
    sa.Column("peer_id", sa.Text, nullable=False),
    sa.Column("sequence", ExactInt, nullable=False),
    sa.Column("micro_credits", ExactInt, nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("envelope", sa.LargeBinary, nullable=False),
    sa.UniqueConstraint("contribution_id"),
    # A chain belongs to one pair: a host that changes its key starts new chains.
    sa.UniqueConstraint("coordinator", "peer_id", "sequence"),
    sa.CheckConstraint("sequence >= 1", name="sequence_positive"),
    sqlite_strict=True,
)

api_keys = sa.Table(
    "api_keys",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("digest", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("volunteers", sa.Text, nullable=False),
    sa.Column("created_at_ms", ExactInt, nullable=False),
    sa.Column("revoked_at_ms", ExactInt, nullable=True),
    sa.CheckConstraint("volunteers IN ('any', 'allowed', 'none')", name="volunteers_tier"),
    sqlite_strict=True,
)

nodes = sa.Table(
    "nodes",
    METADATA,
    sa.Column("peer_id", sa.Text, primary_key=True),
    sa.Column("draft_model", sa.Text, nullable=False),
    sa.Column("first_seen_at_ms", ExactInt, nullable=False),
    sa.Column("last_seen_at_ms", ExactInt, nullable=False),
    sqlite_strict=True,
)
