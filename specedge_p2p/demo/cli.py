"""`specedge-demo`: the whole network on one machine, with the demo pair of models."""

import json
import logging
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import trio
import typer
from rich.console import Console, RenderableType
from rich.live import Live

from specedge_p2p.demo.client import PROMPTS, Batch, Sampling, run_batch
from specedge_p2p.demo.processes import DemoError, Network, NetworkPlan, running_network
from specedge_p2p.demo.show import Palette, credit_table, summary
from specedge_p2p.errors import ClearError, outside_groups
from specedge_p2p.lm.text import Tokenizer

WARM_UP_TOKENS = 8
DTYPES = ("float32", "bfloat16", "float64")


@dataclass(frozen=True, slots=True)
class DemoOptions:
    num_nodes: int
    sampling: Sampling
    dtype: str
    prompts: tuple[str, ...]
    step_floor_s: float
    database_url: str
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


def demo(
    nodes: Annotated[int, typer.Option(min=0, max=16, help="How many volunteer nodes.")] = 2,
    max_tokens: Annotated[
        int, typer.Option(min=1, max=1900, help="Tokens to generate per prompt.")
    ] = 160,
    temperature: Annotated[
        float, typer.Option(min=0.0, max=2.0, help="0 is greedy decoding.")
    ] = 0.7,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 7,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float64.")] = "float32",
    prompt: Annotated[
        str | None, typer.Option(help="One prompt instead of the four built-in ones.")
    ] = None,
    step_floor: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=10.0,
            help="Pad every engine step to this many seconds, to stand for a big model on a GPU.",
        ),
    ] = 0.0,
    database_url: Annotated[
        str, typer.Option(help="Put the ledger on PostgreSQL: postgresql://user@host/name.")
    ] = "",
    once: Annotated[
        bool, typer.Option("--once", help="Stop everything after the prompts.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --once: the last line is one JSON object.")
    ] = False,
) -> None:
    """Run coordinator, engine and nodes as processes here, serve prompts and show who guessed what.

    Everything lives in a temporary folder on free ports of 127.0.0.1. Without --once the network
    stays up until Ctrl-C: open the dashboard, or send requests of your own to the gateway.
    """
    if dtype not in DTYPES:
        raise typer.BadParameter(f"choose one of {', '.join(DTYPES)}", param_hint="--dtype")
    options = DemoOptions(
        num_nodes=nodes,
        sampling=Sampling(max_tokens, temperature, seed),
        dtype=dtype,
        prompts=(prompt,) if prompt is not None else PROMPTS,
        step_floor_s=step_floor,
        database_url=database_url,
        once=once,
        as_json=as_json,
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        with outside_groups():
            trio.run(_until_stopped, options)
    except ClearError as error:
        typer.echo(f"specedge-demo: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        raise typer.Exit(130 if once else 0) from None


async def _until_stopped(options: DemoOptions) -> None:
    """Run, and treat the signals that end a terminal or a service like Ctrl-C.

    A handler of our own also counts where a shell started us with SIGINT ignored.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_interrupt_on_signal)
        await _run(options)
        nursery.cancel_scope.cancel()


async def _interrupt_on_signal() -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async for _ in signals:
            raise KeyboardInterrupt


async def _run(options: DemoOptions) -> None:
    console = Console(stderr=options.as_json)
    with tempfile.TemporaryDirectory(prefix="specedge-demo-") as folder:
        plan = _plan(options, Path(folder))
        console.print(f"starting a coordinator and {options.num_nodes} nodes …")
        async with running_network(plan) as network:
            _print_addresses(console, network, options)
            batch, baseline = await _serve_prompts(console, network, options)
            summary(console, batch, baseline)
            peer_ids = network.peer_ids
            if not options.once:
                reading = await _read_ledger(network.endpoints.database)
                console.print(credit_table(reading.accepted_by_node, reading.micro_credits_by_node))
                console.print("the network stays up; Ctrl-C stops it")
                await _stay(network)
        # The coordinator has stopped, so what it accepted is in the ledger to the last token.
        reading = await _read_ledger(network.endpoints.database)
    console.print(credit_table(reading.accepted_by_node, reading.micro_credits_by_node))
    if options.as_json:
        typer.echo(json.dumps(_result(options, peer_ids, batch, baseline, reading)))


def _plan(options: DemoOptions, home: Path) -> NetworkPlan:
    coordinator_args = [
        *("--model", "demo-target", "--dtype", options.dtype, "--port", "0"),
        *("--listen", "/ip4/127.0.0.1/tcp/0", "--step-floor", str(options.step_floor_s)),
    ]
    if options.database_url:
        coordinator_args += ["--database-url", options.database_url]
    # On the engine's own machine, where a node that gives way would show little.
    node_args = ["--draft-model", "demo-draft", "--threads", "1", "--priority", "normal"]
    return NetworkPlan(home, options.num_nodes, coordinator_args, node_args)


def _print_addresses(console: Console, network: Network, options: DemoOptions) -> None:
    console.print(f"gateway    {network.endpoints.gateway}/v1")
    console.print(f"dashboard  {network.endpoints.dashboard}")
    if options.step_floor_s:
        console.print(f"every engine step is padded to {options.step_floor_s:g} s")


async def _serve_prompts(
    console: Console, network: Network, options: DemoOptions
) -> tuple[Batch, Batch]:
    """The prompts without nodes, then with them, after a warm-up that neither of them pays for."""
    gateway = network.endpoints.gateway
    warm_up = Sampling(WARM_UP_TOKENS, options.sampling.temperature, options.sampling.seed)
    await run_batch(gateway, options.prompts, warm_up, "none")
    console.print("measuring without nodes …")
    baseline = await run_batch(gateway, options.prompts, options.sampling, "none")
    palette = Palette(Tokenizer.load("demo-target"))
    shown = LastBatch()

    def show() -> RenderableType:
        return "" if shown.batch is None else palette.batch(shown.batch)

    # Drawn when the screen asks for it: a picture per token would cost the network its cores.
    with Live(get_renderable=show, console=console, refresh_per_second=8, transient=True):
        batch = await run_batch(gateway, options.prompts, options.sampling, "any", shown.keep)
    console.print(palette.batch(batch))
    network.check()
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


async def _stay(network: Network) -> None:
    """Until Ctrl-C; a process that dies meanwhile ends the demo with its last words."""
    while True:
        network.check()
        await trio.sleep(0.5)


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


def main() -> None:
    typer.run(demo)


if __name__ == "__main__":
    main()
