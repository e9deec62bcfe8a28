"""The ledger without a database: the same semantics, for virtual time and tests."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import trio

from coordinator.ledger.credit import micro_credits
from coordinator.ledger.entries import MAX_LATEST, Chain, validate
from coordinator.ledger.ports import Contribution, Ledger, LedgerSummary, SignedReceipt
from specedge_p2p.identity.keys import Identity
from specedge_p2p.identity.receipt import receipt_hash
from specedge_p2p.names import PeerId, SessionId
from specedge_p2p.views import ContributionPoint, ReceiptView

_Booked = tuple[int, Contribution, SignedReceipt]


class MemoryLedger(Ledger):
    def __init__(self, identity: Identity, clock: Callable[[], float]) -> None:
        self._identity, self._clock = identity, clock
        self._chains: defaultdict[PeerId, Chain] = defaultdict(Chain)
        self._booked: dict[tuple[SessionId, PeerId, int], _Booked] = {}

    async def record(self, contributions: Sequence[Contribution]) -> tuple[SignedReceipt, ...]:
        validate(contributions)
        await trio.lowlevel.checkpoint()
        now_s = self._clock()
        signed = []
        for item in contributions:
            key = (item.session_id, item.peer_id, item.segment)
            if key not in self._booked:
                receipt = self._chains[item.peer_id].add(self._identity, item, now_s)
                self._booked[key] = int(now_s * 1000), item, receipt
                signed.append(receipt)
        return tuple(signed)

    async def receipts_after(
        self, peer_id: PeerId, sequence: int, limit: int = 256
    ) -> tuple[SignedReceipt, ...]:
        await trio.lowlevel.checkpoint()
        of_node = [receipt for _, _, receipt in self._booked.values() if receipt.peer_id == peer_id]
        return tuple(receipt for receipt in of_node if receipt.sequence > sequence)[:limit]

    async def summary(self) -> LedgerSummary:
        await trio.lowlevel.checkpoint()
        accepted: defaultdict[PeerId, int] = defaultdict(int)
        earned: defaultdict[PeerId, int] = defaultdict(int)
        num_transfers = mint = 0
        for _, item, _ in self._booked.values():
            accepted[item.peer_id] += item.num_accepted
            earned[item.peer_id] += micro_credits(item)
            mint -= micro_credits(item)
            num_transfers += micro_credits(item) > 0
        total = mint + sum(earned.values())
        return LedgerSummary(num_transfers, total, dict(accepted), dict(earned))

    async def contributions(self, since_s: float, bucket_s: float) -> tuple[ContributionPoint, ...]:
        """Accepted tokens per node and bucket of time, oldest first."""
        await trio.lowlevel.checkpoint()
        bucket_ms = int(bucket_s * 1000)
        if bucket_ms < 1:
            raise ValueError("a bucket lasts at least 1 ms")
        sums: defaultdict[tuple[int, PeerId], int] = defaultdict(int)
        for at_ms, item, _ in self._booked.values():
            if at_ms >= int(since_s * 1000):
                sums[at_ms - at_ms % bucket_ms, item.peer_id] += item.num_accepted
        return tuple(
            ContributionPoint(peer, at_ms / 1000, count)
            for (at_ms, peer), count in sorted(sums.items())
        )

    async def latest_receipts(self, limit: int) -> tuple[ReceiptView, ...]:
        """The newest receipts first."""
        await trio.lowlevel.checkpoint()
        newest = list(reversed(self._booked.values()))[: max(0, min(limit, MAX_LATEST))]
        return tuple(
            ReceiptView(
                peer_id=item.peer_id,
                sequence=receipt.sequence,
                session_id=item.session_id,
                num_accepted=item.num_accepted,
                micro_credits=micro_credits(item),
                at_s=at_ms / 1000,
                digest=receipt_hash(receipt.envelope).hex()[:16],
            )
            for at_ms, item, receipt in newest
        )
