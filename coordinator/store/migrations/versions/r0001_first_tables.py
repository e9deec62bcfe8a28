"""Accounts, contributions, transfers, receipts, API keys, nodes.

A migration is history: it does not import the tables of today.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

APPEND_ONLY = ("contributions", "transfers", "receipts")

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _create_ledger()
    _create_records()
    accounts = sa.table(
        "accounts", sa.column("name"), sa.column("balance"), sa.column("allow_negative")
    )
    # The account that all credit comes from is the only one that may be negative.
    op.execute(accounts.insert().values(name="mint", balance=0, allow_negative=1))
    if op.get_bind().dialect.name == "sqlite":
        _forbid_changes_sqlite()
    else:
        _forbid_changes_postgresql()


def _create_ledger() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", INT, nullable=False, autoincrement=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("balance", INT, nullable=False),
        sa.Column("allow_negative", INT, nullable=False),
        sa.CheckConstraint(
            "balance >= 0 OR allow_negative = 1", name=op.f("ck_accounts_not_overdrawn")
        ),
        sa.CheckConstraint(
            "allow_negative IN (0, 1)", name=op.f("ck_accounts_allow_negative_is_flag")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accounts")),
        sa.UniqueConstraint("name", name=op.f("uq_accounts_name")),
        sqlite_strict=True,
    )
    op.create_table(
        "contributions",
        sa.Column("id", INT, nullable=False, autoincrement=True),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("peer_id", sa.Text(), nullable=False),
        sa.Column("segment", INT, nullable=False),
        sa.Column("num_accepted", INT, nullable=False),
        sa.Column("num_credited", INT, nullable=False),
        sa.Column("recorded_at_ms", INT, nullable=False),
        sa.CheckConstraint("segment >= 0", name=op.f("ck_contributions_segment_not_negative")),
        sa.CheckConstraint(
            "num_credited >= 0 AND num_credited <= num_accepted",
            name=op.f("ck_contributions_credited_within_accepted"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_contributions")),
        sa.UniqueConstraint(
            "session_id",
            "peer_id",
            "segment",
            name=op.f("uq_contributions_session_id_peer_id_segment"),
        ),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_contributions_recorded_at_ms"), "contributions", ["recorded_at_ms"])
    op.create_table(
        "transfers",
        sa.Column("id", INT, nullable=False, autoincrement=True),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("debit_account_id", INT, nullable=False),
        sa.Column("credit_account_id", INT, nullable=False),
        sa.Column("micro_credits", INT, nullable=False),
        sa.Column("recorded_at_ms", INT, nullable=False),
        sa.CheckConstraint("micro_credits > 0", name=op.f("ck_transfers_amount_positive")),
        sa.CheckConstraint(
            "debit_account_id <> credit_account_id", name=op.f("ck_transfers_two_accounts")
        ),
        sa.ForeignKeyConstraint(
            ["debit_account_id"], ["accounts.id"], name=op.f("fk_transfers_debit_account_id")
        ),
        sa.ForeignKeyConstraint(
            ["credit_account_id"], ["accounts.id"], name=op.f("fk_transfers_credit_account_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_transfers")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_transfers_idempotency_key")),
        sqlite_strict=True,
    )
    op.create_table(
        "receipts",
        sa.Column("id", INT, nullable=False, autoincrement=True),
        sa.Column("contribution_id", INT, nullable=False),
        sa.Column("coordinator", sa.Text(), nullable=False),
        sa.Column("peer_id", sa.Text(), nullable=False),
        sa.Column("sequence", INT, nullable=False),
        sa.Column("micro_credits", INT, nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("sequence >= 1", name=op.f("ck_receipts_sequence_positive")),
        sa.ForeignKeyConstraint(
            ["contribution_id"], ["contributions.id"], name=op.f("fk_receipts_contribution_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_receipts")),
        sa.UniqueConstraint("contribution_id", name=op.f("uq_receipts_contribution_id")),
        sa.UniqueConstraint(
            "coordinator",
            "peer_id",
            "sequence",
            name=op.f("uq_receipts_coordinator_peer_id_sequence"),
        ),
        sqlite_strict=True,
    )


def _create_records() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("volunteers", sa.Text(), nullable=False),
        sa.Column("created_at_ms", INT, nullable=False),
        sa.Column("revoked_at_ms", INT, nullable=True),
        sa.CheckConstraint(
            "volunteers IN ('any', 'allowed', 'none')", name=op.f("ck_api_keys_volunteers_tier")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("digest", name=op.f("uq_api_keys_digest")),
        sqlite_strict=True,
    )
    op.create_table(
        "nodes",
        sa.Column("peer_id", sa.Text(), nullable=False),
        sa.Column("draft_model", sa.Text(), nullable=False),
        sa.Column("first_seen_at_ms", INT, nullable=False),
        sa.Column("last_seen_at_ms", INT, nullable=False),
        sa.PrimaryKeyConstraint("peer_id", name=op.f("pk_nodes")),
        sqlite_strict=True,
    )


def _forbid_changes_sqlite() -> None:
    for table in APPEND_ONLY:
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_refuse_{change.lower()} BEFORE {change} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )


def _forbid_changes_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$ "
        "BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME "
        "USING ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    for table in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER {table}_refuse_change BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION refuse_change()"
        )
        op.execute(
            f"CREATE TRIGGER {table}_refuse_truncate BEFORE TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )
