"""What accepted tokens are worth, as double-entry transfers of whole micro-credits."""

from dataclasses import dataclass

from coordinator.ledger.ports import Contribution
from specedge_p2p.names import PeerId

MICRO_CREDITS_PER_TOKEN = 1_000_000
MINT = "mint"
"""The account that all credit comes from; its balance is what was ever earned, negated."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """A movement from one account to another: what `credit` gains is what `debit` loses.

    Args:
        debit: account that gives.
        credit: account that receives.
        amount: micro-credits, above 0.
        idempotency_key: the same for the same fact; a second transfer with it is not written.
    """

    debit: str
    credit: str
    amount: int
    idempotency_key: str


def node_account(peer_id: PeerId) -> str:
    return f"node:{peer_id}"


def idempotency_key(contribution: Contribution) -> str:
    """Names (session, node, segment) and nothing else."""
    return f"draft/{contribution.session_id}/{contribution.peer_id}/{contribution.segment}"


def micro_credits(contribution: Contribution, *, is_own: bool = False) -> int:
    """What a contribution earns.

    Args:
        contribution: the accepted tokens.
        is_own: the session was asked for by the node itself or by whoever runs it; earns nothing.

    Raises ValueError for counts that cannot be.
    """
    if not 0 <= contribution.num_credited <= contribution.num_accepted:
        raise ValueError(
            f"{contribution.num_credited} credited of {contribution.num_accepted} accepted tokens"
        )
    return 0 if is_own else contribution.num_credited * MICRO_CREDITS_PER_TOKEN


def transfer(contribution: Contribution, *, is_own: bool = False) -> Transfer | None:
    """The transfer that pays for a contribution, None when it earns nothing."""
    amount = micro_credits(contribution, is_own=is_own)
    if amount == 0:
        return None
    account = node_account(contribution.peer_id)
    return Transfer(MINT, account, amount, idempotency_key(contribution))
