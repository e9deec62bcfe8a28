"""`specedge-demo`: the whole network on one machine, with the demo pair of models."""

import logging
import signal
from typing import Annotated

import trio
import typer

from specedge_p2p.demo.client import PROMPTS, Sampling
from specedge_p2p.demo.run import DEFAULT_PORT, DemoOptions, run_demo
from specedge_p2p.errors import ClearError, outside_groups

DTYPES = ("float32", "bfloat16", "float64")


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
    port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help=f"Port of gateway and dashboard. Default: {DEFAULT_PORT}, a free one where it is "
            "taken.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --once: the last line is one JSON object.")
    ] = False,
) -> None:
    """Run coordinator, engine and nodes as processes here, serve prompts and show who guessed what.

    Everything lives in a temporary folder on ports of 127.0.0.1. Without --once the network stays
    up until Ctrl-C: open the dashboard, or send requests of your own to the gateway.
    """
    if dtype not in DTYPES:
        raise typer.BadParameter(f"choose one of {', '.join(DTYPES)}", param_hint="--dtype")
    if as_json and not once:
        typer.echo("specedge-demo: --json tells of a run that ends: add --once", err=True)
        raise typer.Exit(2)
    options = DemoOptions(
        num_nodes=nodes,
        sampling=Sampling(max_tokens, temperature, seed),
        dtype=dtype,
        prompts=(prompt,) if prompt is not None else PROMPTS,
        step_floor_s=step_floor,
        database_url=database_url,
        port=port,
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
        await run_demo(options)
        nursery.cancel_scope.cancel()


async def _interrupt_on_signal() -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async for _ in signals:
            raise KeyboardInterrupt


def main() -> None:
    typer.run(demo)


if __name__ == "__main__":
    main()
