"""One run of the demo: start the network, serve the prompts, show what came of it."""

import json
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx
import trio
import typer
from rich.console import Console, RenderableType
from rich.live import Live

from specedge_p2p.demo.client import Batch, Sampling, run_batch
from specedge_p2p.demo.folder import PassingFolder, passing_folder
from specedge_p2p.demo.next_steps import addresses, next_steps
from specedge_p2p.demo.processes import Child, DemoError, Network, NetworkPlan, running_network
from specedge_p2p.demo.show import Palette, credit_table, summary
from specedge_p2p.lm.text import Tokenizer
from specedge_p2p.plural import counted

DEFAULT_PORT = 8000
WARM_UP_TOKENS = 8


@dataclass(frozen=True, slots=True)
class DemoOptions:
    num_nodes: int
    sampling: Sampling
    dtype: str
    prompts: tuple[str, ...]
    step_floor_s: float
    database_url: str
    port: int | None
    """None: DEFAULT_PORT, or a free one where that is taken."""
    once: bool
    as_json: bool


@dataclass(slots=True)
class LastBatch:
    """What to show while tokens come in."""

    batch: Batch | None = None

    def keep(self, batch: Batch) -> None:
        self.batch = batch


@dataclass(frozen=True, slots=True)
class LedgerReading:
    """What `specedge-coordinator ledger summary --json` read back by SQL."""

    num_transfers: int
    sum: int
    accepted_by_node: dict[str, int]
    micro_credits_by_node: dict[str, int]


async def run_demo(options: DemoOptions) -> None:
    """Returns after the prompts with `once`, else never. Raises ClearError."""
    console = Console(stderr=options.as_json)
    with passing_folder("specedge-demo-") as folder:
        plan = _plan(options, folder, console)
        console.print(f"starting a coordinator and {counted(options.num_nodes, 'node')} …")
        async with running_network(plan) as network, trio.open_nursery() as nursery:
            for node in network.nodes:
                nursery.start_soon(_report_end, node, console)
            nursery.start_soon(_fail_at_end, network.coordinator)
            batch, baseline = await _serve_prompts(console, network, options)
            summary(console, batch, baseline)
            peer_ids = network.peer_ids
            if not options.once:
                reading = await _read_ledger(network.endpoints.database)
                console.print(credit_table(reading.accepted_by_node, reading.micro_credits_by_node))
                _say(console, next_steps(network.endpoints, folder.path / "yours"))
                await trio.sleep_forever()
            nursery.cancel_scope.cancel()
        # The coordinator has stopped, so what it accepted is in the ledger to the last token.
        reading = await _read_ledger(network.endpoints.database)
    console.print(credit_table(reading.accepted_by_node, reading.micro_credits_by_node))
    if options.as_json:
        typer.echo(json.dumps(_result(options, peer_ids, batch, baseline, reading)))


def _say(console: Console, text: str) -> None:
    """As it is: a line to paste must not be broken at the terminal's edge."""
    console.print(text, soft_wrap=True, markup=False, highlight=False)


def _plan(options: DemoOptions, folder: PassingFolder, console: Console) -> NetworkPlan:
    port = options.port
    if port is None:
        port = DEFAULT_PORT if _is_free(DEFAULT_PORT) else 0
        if port == 0:
            console.print(f"port {DEFAULT_PORT} is taken: gateway and dashboard take a free one")
    coordinator_args = [
        *("--model", "demo-target", "--dtype", options.dtype, "--port", str(port)),
        *("--listen", "/ip4/127.0.0.1/tcp/0", "--step-floor", str(options.step_floor_s)),
    ]
    if options.database_url:
        coordinator_args += ["--database-url", options.database_url]
    # On the engine's own machine, where a node that gives way would show little.
    node_args = ["--draft-model", "demo-draft", "--threads", "1", "--priority", "normal"]
    held = (folder.holding_fd,)
    return NetworkPlan(folder.path, options.num_nodes, coordinator_args, node_args, held)


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


async def _report_end(node: Child, console: Console) -> None:
    await node.process.wait()
    _say(console, f"{node.name} ended ({node.ending()}); the network goes on without it")


async def _fail_at_end(coordinator: Child) -> None:
    await coordinator.process.wait()
    coordinator.check()


async def _serve_prompts(
    console: Console, network: Network, options: DemoOptions
) -> tuple[Batch, Batch]:
    """See `_serve`. An answer that breaks off with the coordinator's end is told as that end."""
    _say(console, "\n".join(addresses(network.endpoints)))
    if options.step_floor_s:
        console.print(f"every engine step is padded to {options.step_floor_s:g} s")
    try:
        return await _serve(console, network.endpoints.gateway, options)
    except* httpx.HTTPError:
        await network.coordinator.check_soon()
        raise


async def _serve(console: Console, gateway: str, options: DemoOptions) -> tuple[Batch, Batch]:
    """The prompts without nodes, then with them, after a warm-up that neither of them pays for."""
    warm_up = Sampling(WARM_UP_TOKENS, options.sampling.temperature, options.sampling.seed)
    await run_batch(gateway, options.prompts, warm_up, "none")
    console.print("measuring without nodes …")
    baseline = await run_batch(gateway, options.prompts, options.sampling, "none")
    palette = Palette(Tokenizer.load("demo-target"))
    shown = LastBatch()

    def show() -> RenderableType:
        return "" if shown.batch is None else palette.live_batch(shown.batch, console)

    # Drawn when the screen asks for it: a picture per token would cost the network its cores.
    with Live(get_renderable=show, console=console, refresh_per_second=8, transient=True):
        batch = await run_batch(gateway, options.prompts, options.sampling, "any", shown.keep)
    console.print(palette.batch(batch))
    return batch, baseline


async def _read_ledger(database: str) -> LedgerReading:
    command = [sys.executable, "-m", "coordinator.cli", "ledger", "summary", "--json"]
    done = await trio.run_process(
        [*command, "--database-url", database], capture_stdout=True, check=False
    )
    if done.returncode != 0:
        raise DemoError(f"the ledger could not be read (code {done.returncode})")
    reading: Mapping[str, object] = json.loads(done.stdout)
    return LedgerReading(**reading)  # type: ignore[arg-type]


def _result(
    options: DemoOptions,
    peer_ids: Sequence[str],
    batch: Batch,
    baseline: Batch,
    reading: LedgerReading,
) -> dict[str, object]:
    first = batch.generations[0]
    by_node = dict.fromkeys(peer_ids, 0)
    by_node.update(batch.num_accepted_by_node)
    has_nodes = options.num_nodes > 0
    ledger = {
        "num_transfers": reading.num_transfers,
        "sum": reading.sum,
        "accepted_by_node": dict.fromkeys(by_node, 0) | reading.accepted_by_node,
    }
    return {
        "token_ids": first.token_ids,
        "text": first.text,
        "num_tokens": batch.num_tokens,
        "num_rounds": batch.num_rounds,
        "num_accepted": sum(by_node.values()),
        "num_accepted_by_node": by_node,
        "acceptance_length": batch.acceptance_length if has_nodes else None,
        "acceptance_length_drafted": batch.acceptance_length_drafted if has_nodes else None,
        "tokens_per_s": batch.tokens_per_s,
        "baseline_tokens_per_s": baseline.tokens_per_s,
        "ledger": ledger,
        "step_floor_s": options.step_floor_s,
        "dtype": options.dtype,
        "database": "postgresql" if options.database_url else "sqlite",
    }
