"""The composition root of the coordinator: real parts, wired once."""

import json
import logging
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from coordinator.assembly import Coordinator, Parts
from coordinator.engine.client import ProcessEngine
from coordinator.engine.settings import EngineSettings
from coordinator.gateway.app import create_app
from coordinator.gateway.auth import ApiKey, Authenticator
from coordinator.gateway.limits import LimitSettings, RequestLimits
from coordinator.gateway.metrics import GatewayMetrics
from coordinator.gateway.server import ServerSettings, serve_gateway
from coordinator.ledger.sql_ledger import SqlLedger
from coordinator.metrics import NetworkCollector
from coordinator.settings import CoordinatorSettings
from coordinator.store.database import open_database, parse_url, shown
from coordinator.store.keys import ApiKeys
from coordinator.store.writer import open_writer
from dashboard.app import mount_dashboard
from specedge_p2p.garbage import look_for_cycles_rarely
from specedge_p2p.identity.home import only_process
from specedge_p2p.identity.keys import Identity
from specedge_p2p.identity.record import CoordinatorRecord, seal_record
from specedge_p2p.lm.text import Tokenizer
from specedge_p2p.overlay.discovery import announce, serve_record
from specedge_p2p.overlay.libp2p_host import open_overlay
from specedge_p2p.overlay.ports import Overlay
from specedge_p2p.views import ContributionPoint, NetworkView, ReceiptView

log = logging.getLogger(__name__)

RECORD_LIFETIME_S = 600.0
GRACE_S = 3.0
"""From the wish to stop until running answers are cut."""


@dataclass(frozen=True, slots=True)
class Queries:
    """Implements dashboard.queries on the live parts."""

    coordinator: Coordinator
    ledger: SqlLedger

    def network(self) -> NetworkView:
        return self.coordinator.status.network()

    async def contributions(self, since_s: float, bucket_s: float) -> tuple[ContributionPoint, ...]:
        return await self.ledger.contributions(since_s, bucket_s)

    async def latest_receipts(self, limit: int) -> tuple[ReceiptView, ...]:
        return await self.ledger.latest_receipts(limit)


@dataclass(frozen=True, slots=True)
class _KeyLookup:
    """Implements the gateway's KeyLookup on the store."""

    keys: ApiKeys

    async def lookup(self, digest: bytes) -> ApiKey | None:
        record = await self.keys.lookup(digest)
        if record is None:
            return None
        return ApiKey(record.key_id, record.label, record.volunteers)


async def run_coordinator(settings: CoordinatorSettings, ready_fd: int | None = None) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        settings: see CoordinatorSettings.
        ready_fd: a file descriptor on which one JSON line says where everything is, once requests
            can be served; closed then.

    Raises:
        EngineError, StoreError, IdentityError, OverlayError, BindError, ModelError: with one line
            that says what to do.
    """
    with only_process(settings.home, "coordinator"):
        await _run(settings, ready_fd)


async def _run(settings: CoordinatorSettings, ready_fd: int | None) -> None:
    identity = Identity.load_or_create(settings.home / "identity.pem")
    codec = await trio.to_thread.run_sync(Tokenizer.load, settings.model)
    with open_database(settings.database_url) as database:
        async with (
            open_writer(database) as writer,
            _running_engine(settings) as engine,
            open_overlay(
                identity, listen=settings.listen, bootstrap=settings.bootstrap, dht="server"
            ) as overlay,
        ):
            ledger = SqlLedger(database, writer, identity, time.time)
            coordinator = Coordinator(
                Parts(
                    engine=engine,
                    overlay=overlay,
                    ledger=ledger,
                    codec=codec,
                    model=settings.model,
                    clock=trio.current_time,
                    allowed_nodes=settings.allowed_nodes,
                    limits=settings.limits,
                    timing=settings.timing,
                    sample_file=settings.home / "sample.msgpack",
                )
            )
            server = _Server(settings, coordinator, identity, overlay)
            keys = ApiKeys(database, writer, time.time) if settings.require_keys else None
            auth = Authenticator(_KeyLookup(keys) if keys is not None else None)
            app = _application(server.stop, coordinator, ledger, auth)
            await server.run(app, ready_fd)


@asynccontextmanager
async def _running_engine(settings: CoordinatorSettings) -> AsyncIterator[ProcessEngine]:
    engine = ProcessEngine(
        EngineSettings(
            model=settings.model,
            dtype=settings.dtype,
            quantize=settings.quantize,
            device=settings.device,
            threads=settings.threads,
            kv_memory=settings.kv_memory,
            step_floor_s=settings.step_floor_s,
            emulate=settings.emulate,
            stretch=settings.stretch,
            max_sessions=settings.limits.max_sessions,
            draft_model=settings.engine_draft,
            tensor_parallel=settings.tensor_parallel,
        )
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        yield engine
        nursery.cancel_scope.cancel()


def _application(
    stop: trio.Event, coordinator: Coordinator, ledger: SqlLedger, auth: Authenticator
) -> FastAPI:
    registry = CollectorRegistry()
    registry.register(NetworkCollector(coordinator.status))
    app = create_app(
        coordinator.generations,
        auth,
        RequestLimits(LimitSettings()),
        GatewayMetrics(registry),
        stop=stop,
        num_nodes=lambda: len(coordinator.leases.nodes),
    )
    mount_dashboard(app, Queries(coordinator, ledger), stop=stop)
    return app


class _Server:
    """The running coordinator from the first task to the last."""

    def __init__(
        self,
        settings: CoordinatorSettings,
        coordinator: Coordinator,
        identity: Identity,
        overlay: Overlay,
    ) -> None:
        self._settings, self._coordinator = settings, coordinator
        self._identity, self._overlay = identity, overlay
        self.stop = trio.Event()

    async def run(self, app: FastAPI, ready_fd: int | None) -> None:
        bind = f"{self._settings.host}:{self._settings.port}"
        if ":" in self._settings.host:
            bind = f"[{self._settings.host}]:{self._settings.port}"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stop_on_signal, nursery.cancel_scope)
            # The gateway comes first: /readyz says that the model is still being loaded.
            url: str = await nursery.start(
                lambda task_status: serve_gateway(
                    app,
                    bind,
                    self.stop,
                    settings=ServerSettings(graceful_timeout_s=GRACE_S),
                    task_status=task_status,
                )
            )
            log.info("gateway on %s, loading %s", url, self._settings.model)
            await nursery.start(self._coordinator.run)
            async with serve_record(self._overlay, self._record):
                nursery.start_soon(announce, self._overlay)
                look_for_cycles_rarely()
                self._say_ready(url, ready_fd)
                await trio.sleep_forever()

    async def _stop_on_signal(self, everything: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for number in signals:
                log.info("stopping on %s", signal.Signals(number).name)
                break
        self.stop.set()
        with trio.move_on_after(GRACE_S):
            await self._coordinator.drain("the coordinator is stopping")
            await self._coordinator.sessions.until_empty()
        everything.cancel()

    def _say_ready(self, url: str, ready_fd: int | None) -> None:
        endpoints = {
            "peer_id": self._identity.peer_id,
            "addresses": list(self._overlay.addresses),
            "gateway": url,
            "dashboard": f"{url}/dashboard",
            "database": self._settings.database_url,
        }
        # Who started this gave the database's password; logs are read by others too.
        logged = endpoints | {"database": shown(parse_url(self._settings.database_url))}
        for name, value in logged.items():
            log.info("%s %s", name, value if isinstance(value, str) else " ".join(value))
        if ready_fd is not None:
            with os.fdopen(ready_fd, "w", encoding="utf-8") as pipe:
                pipe.write(json.dumps(endpoints) + "\n")

    def _record(self) -> bytes:
        """What this coordinator says of itself now, signed."""
        now_s = time.time()
        return seal_record(
            self._identity,
            CoordinatorRecord(
                peer_id=self._identity.peer_id,
                addresses=tuple(self._overlay.addresses),
                target_models=(self._settings.model,),
                tokenizer_fingerprints=(self._coordinator.tokenizer_fingerprint,),
                draft_models=self._settings.draft_models,
                load=self._coordinator.share_taken,
                sequence=int(now_s * 1000),
                expires_at_s=now_s + RECORD_LIFETIME_S,
            ),
        )
