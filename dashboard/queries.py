"""What the dashboard may ask. The coordinator's composition root implements it."""

from typing import Protocol

from specedge_p2p.views import ContributionPoint, NetworkView, ReceiptView


class DashboardQueries(Protocol):
    def network(self) -> NetworkView:
        """A snapshot of the live network; cheap."""
        ...

    async def contributions(self, since_s: float, bucket_s: float) -> tuple[ContributionPoint, ...]:
        """Accepted tokens per node and time bucket since a Unix time, oldest first."""
        ...

    async def latest_receipts(self, limit: int) -> tuple[ReceiptView, ...]:
        """The newest receipts first."""
        ...
