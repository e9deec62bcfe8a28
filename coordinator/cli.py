"""`specedge-coordinator`: host a target model and see what the volunteers contributed."""

import logging
from enum import StrEnum
from typing import Annotated

import trio
import typer

from coordinator.cli_accounts import identity_app, keys_app, ledger_app
from coordinator.cli_common import (
    DEFAULT_HOME,
    DatabaseOption,
    HomeOption,
    clear_errors,
    default_database,
)
from specedge_p2p.errors import ClearError
from specedge_p2p.identity.keys import parse_peer_id
from specedge_p2p.lm.quantization import Quantize
from specedge_p2p.names import PeerId
from specedge_p2p.version import add_version

app = typer.Typer(
    help="Host a large language model that volunteers' machines make faster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(keys_app, name="keys")
app.add_typer(ledger_app, name="ledger")
app.add_typer(identity_app, name="identity")
add_version(app, "specedge-coordinator")

MIN_HOLDOUT_RATE, MAX_HOLDOUT_RATE = 0.005, 0.01
"""Fewer would never tell; more would cost users more than the figure is worth."""


class Dtype(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float64 = "float64"


@app.command()
def serve(
    model: Annotated[
        str,
        typer.Option(help="Target model: a folder, a name on the model hub, or demo-target."),
    ] = "demo-target",
    host: Annotated[
        str, typer.Option(help="Address of gateway and dashboard. Others than loopback need keys.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of gateway and dashboard; 0: any.")
    ] = 8000,
    listen: Annotated[
        list[str] | None,
        typer.Option(help="Multiaddress for nodes. Repeatable. Default: /ip4/0.0.0.0/tcp/4011."),
    ] = None,
    bootstrap: Annotated[
        list[str] | None,
        typer.Option(help="Multiaddress, with /p2p/<peer id>, of any coordinator. Repeatable."),
    ] = None,
    require_keys: Annotated[
        bool, typer.Option("--require-keys", help="Serve only requests with an API key.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Serve everybody, without keys, on any address.")
    ] = False,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            help="Peer id of a node that may draft for `volunteers: allowed`. Repeatable."
        ),
    ] = None,
    suggest: Annotated[
        list[str] | None,
        typer.Option(help="Draft model to suggest to nodes, best first. Repeatable."),
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Arithmetic of the target model.")] = Dtype.auto,
    quantize: Annotated[
        Quantize, typer.Option(help="Weights of the target model in 8 or 4 bits; needs torchao.")
    ] = "none",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto takes a GPU.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of the engine.")] = 1,
    kv_memory: Annotated[
        str,
        typer.Option(
            help="Memory of the key-value cache: 8GiB, 500MB, or 50% of what is free. "
            "Default: 80% of a GPU's free memory, 25% elsewhere.",
            metavar="SIZE|SHARE",
        ),
    ] = "",
    tensor_parallel: Annotated[
        int, typer.Option(min=1, max=64, help="Share the target model among this many devices.")
    ] = 1,
    max_sessions: Annotated[int, typer.Option(min=1, max=4096, help="Live sessions.")] = 64,
    engine_draft: Annotated[
        str,
        typer.Option(help="Draft model that the engine runs beside the target, or none."),
    ] = "none",
    engine_tree: Annotated[
        str,
        typer.Option(
            help="What it grows: auto (what pays), off, or a fixed tree of levels x width.",
            metavar="off|auto|DxW",
        ),
    ] = "auto",
    max_batch: Annotated[
        int, typer.Option(min=0, max=4096, help="Most sessions that one step decodes; 0: all.")
    ] = 0,
    step_floor: Annotated[
        float,
        typer.Option(min=0.0, max=10.0, help="For measuring: pad engine steps to these seconds."),
    ] = 0.0,
    emulate: Annotated[
        str,
        typer.Option(
            help="For measuring: pad every forward to what it takes on another device.",
            metavar="NAME|FILE",
        ),
    ] = "",
    stretch: Annotated[
        float,
        typer.Option(
            min=0.1,
            max=1000.0,
            help="For measuring: real seconds per emulated second of --emulate.",
        ),
    ] = 1.0,
    ngram: Annotated[
        bool,
        typer.Option("--ngram/--no-ngram", hidden=True, help="For measuring: guess from the text."),
    ] = True,
    holdout: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=MAX_HOLDOUT_RATE,
            help="Share of sessions served without volunteers, to measure what they bring.",
        ),
    ] = 0.0075,
    node_beam: Annotated[
        int,
        typer.Option(
            min=0, max=256, hidden=True, help="For measuring: vertices per level, 0: as nodes like."
        ),
    ] = 0,
    lockstep: Annotated[
        str,
        typer.Option(
            hidden=True,
            metavar="LEVELSxVERTICES[:nopro][:BATCH]",
            help="For measuring: rounds that wait for the nodes, in place of continuous drafting.",
        ),
    ] = "",
    home: HomeOption = DEFAULT_HOME,
    database_url: DatabaseOption = "",
    ready_fd: Annotated[
        int | None,
        typer.Option(help="For programs: say on this descriptor, in one JSON line, where all is."),
    ] = None,
) -> None:
    """Load the target model, serve the gateway, the dashboard and the volunteers.

    Without any option the demo model is served on http://127.0.0.1:8000/v1, to this machine only.
    """
    with clear_errors():
        from coordinator.gateway.server import is_loopback
        from coordinator.main import run_coordinator
        from coordinator.settings import CoordinatorSettings, Limits, Lockstep, parse_tree
        from specedge_p2p.lm.emulated import load_profile
        from specedge_p2p.lm.kv_memory import KvMemory
        from specedge_p2p.wire.messages import GrowthWishes

        if kv_memory:
            KvMemory.parse(kv_memory)  # a mistake shows before anything is loaded
        if emulate:
            load_profile(emulate).step_cost()  # a mistake shows before anything is loaded
        if not is_loopback(host) and not (require_keys or public):
            raise ClearError(
                f"--host {host} can be reached by others: add --require-keys (and make a key with "
                "`specedge-coordinator keys create`) or --public"
            )
        settings = CoordinatorSettings(
            home=home,
            model=model,
            engine_draft="" if engine_draft == "none" or engine_tree == "off" else engine_draft,
            dtype=dtype.value,
            quantize=quantize,
            device=device,
            threads=threads,
            kv_memory=kv_memory,
            tensor_parallel=tensor_parallel,
            step_floor_s=step_floor,
            emulate=emulate,
            stretch=stretch,
            host=host,
            port=port,
            listen=tuple(listen or ("/ip4/0.0.0.0/tcp/4011",)),
            bootstrap=tuple(bootstrap or ()),
            database_url=database_url or default_database(home),
            require_keys=require_keys,
            allowed_nodes=frozenset(_peer_id(text) for text in allow or ()),
            draft_models=tuple(suggest or (("demo-draft",) if model == "demo-target" else ())),
            limits=Limits(
                max_sessions=max_sessions,
                has_ngram=ngram,
                max_batch=max_batch,
                engine_tree=parse_tree(engine_tree),
                holdout_rate=_holdout_rate(holdout),
                wishes=GrowthWishes(beam_width=node_beam),
                lockstep=Lockstep.parse(lockstep) if lockstep else None,
            ),
        )
        start_logging()
        trio.run(run_coordinator, settings, ready_fd)


def _holdout_rate(rate: float) -> float:
    if 0 < rate < MIN_HOLDOUT_RATE:
        raise ClearError(
            f"--holdout {rate:g} would take years to tell anything: at least {MIN_HOLDOUT_RATE:g}, "
            "or 0 to measure nothing"
        )
    return rate


def _peer_id(text: str) -> PeerId:
    try:
        return parse_peer_id(text)
    except ValueError as error:
        raise ClearError(
            f"--allow {text}: {error}; `specedge-node identity show` prints the id of a node"
        ) from error


def start_logging() -> None:
    """Log to stderr, one line per event."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for name in ("httpx", "hypercorn.error", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
