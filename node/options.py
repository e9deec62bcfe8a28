"""The options of `specedge-node`; those that several commands take are named once, here."""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from node.hardware import limit_threads
from node.settings import AUTO, Dtype, NodeSettings, default_home, default_threads
from specedge_p2p.lm.quantization import Quantize

Home = Annotated[
    Path,
    typer.Option(
        help="Folder of your key, receipts and known coordinators; one node per folder."
        " $SPECEDGE_HOME moves the default.",
        default_factory=default_home,
        show_default="$SPECEDGE_HOME/node, else your user data folder",
    ),
]
Coordinators = Annotated[
    list[str] | None,
    typer.Option(
        help="Multiaddress of a coordinator, as it prints it at start:"
        " /ip4/203.0.113.5/tcp/4011/p2p/12D3Koo... May be given more than once.",
        metavar="MULTIADDR",
    ),
]
Bootstrap = Annotated[
    list[str] | None,
    typer.Option(
        help="Any peer of the network; coordinators are found through it.",
        metavar="MULTIADDR",
    ),
]
DraftModels = Annotated[
    list[str] | None,
    typer.Option(
        help="Name on the model hub, or a folder. 'auto', the default, takes what the coordinator"
        " suggests. Its tokenizer must be the target's. Of several the one that is worth most"
        " here is taken.",
        metavar="NAME|PATH|auto",
    ),
]
Threads = Annotated[
    int,
    typer.Option(
        help="CPU threads of the draft model. One per process is best on small machines.",
        metavar="N",
        default_factory=lambda: default_threads(os.cpu_count()),
        show_default="1, or half the cores from 5 on",
    ),
]
Arithmetic = Annotated[Dtype, typer.Option(help="Arithmetic; auto is float32, on a GPU bfloat16.")]
Weights = Annotated[
    Quantize, typer.Option(help="Weights of the draft model in 8 or 4 bits; needs torchao.")
]
Device = Annotated[str, typer.Option(help="Where the model runs: auto, cpu, cuda, cuda:1.")]
LinkDelay = Annotated[
    float,
    typer.Option(help="For measuring: adds this round trip to the link, half each way."),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftOptions:
    """What every command that drafts is told."""

    home: Home
    coordinator: Coordinators = None
    bootstrap: Bootstrap = None
    draft_model: DraftModels = None
    threads: Threads
    dtype: Arithmetic = "auto"
    quantize: Weights = "none"
    device: Device = "auto"
    link_delay_ms: LinkDelay = 0.0
    verbose: Verbose = False

    def settings(self) -> NodeSettings:
        """Raises SettingsError. Bounds the threads of this process, too."""
        limit_threads(self.threads)
        return NodeSettings(
            home=self.home,
            coordinators=tuple(self.coordinator or ()),
            bootstrap=tuple(self.bootstrap or ()),
            draft_models=tuple(self.draft_model or (AUTO,)),
            threads=self.threads,
            dtype=self.dtype,
            quantize=self.quantize,
            device=self.device,
            link_delay_s=self.link_delay_ms / 1000,
        )


def takes_draft_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes those options beside its own; it gets them as its first argument.

    Typer reads options from a function's signature, so that is where they are put.
    """
    shared = inspect.signature(DraftOptions).parameters
    signature = inspect.signature(command)
    own = list(signature.parameters.values())[1:]

    @wraps(command)
    def run(**values: Any) -> None:  # noqa: ANN401
        options = DraftOptions(**{name: values.pop(name) for name in shared})
        command(options, **values)

    parameters = [*shared.values(), *own]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run
