"""Loading a draft model: the node's only door to the part that imports torch."""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from node.dishonest import GuessingModel
from node.hardware import benchmark, has_cuda_device
from node.join import Draft
from node.settings import AUTO, NodeSettings
from specedge_p2p.lm.emulated import EmulatedDevice
from specedge_p2p.lm.ports import LanguageModel
from specedge_p2p.version import software_version

Report = Callable[[str, int, int], None]


def prepare_draft(
    name: str,
    settings: NodeSettings,
    console: Console,
    clock: Callable[[], float],
    device: EmulatedDevice | None = None,
) -> Draft:
    """Load a model by name or from a folder and measure it. Blocks.

    Raises ModelError, and ProfileError for a device that drafts nothing.

    Args:
        name: on the model hub, or a folder, or one of the demo models.
        settings: dtype, device and threads.
        console: where the progress of a download is shown.
        clock: seconds, rising.
        device: what levels are padded to, if to anything.
    """
    # Imported here: torch takes seconds, and `--help` should not.
    from specedge_p2p.lm.loader import load_model
    from specedge_p2p.lm.text import Tokenizer

    with _download_bar(console) as report:
        tokenizer = Tokenizer.load(name, progress=report)
        loaded = load_model(
            name,
            dtype=settings.dtype,
            device=settings.device,
            quantize=settings.quantize,
            threads=settings.threads,
            progress=report,
        )
    model: LanguageModel = loaded if device is None else device.as_draft(loaded)
    if settings.drafting == "random":
        model = GuessingModel(model, seed=1)
    measured = benchmark(model, clock)
    if device is not None:
        device.tally.clear()  # of the measurement
    return Draft(name, model, tokenizer.fingerprint(), measured)


def machine_text(settings: NodeSettings) -> str:
    """What a measurement holds for: device, arithmetic, threads, emulation and software.

    Which device "auto" stands for is a guess here, and settled by torch when it loads a model;
    its version says whether it was built for a GPU.
    """
    where, dtype = _likely_device_and_dtype(settings)
    parts = [
        platform.node(),
        where,
        dtype,
        f"{settings.threads} threads",
        software_version("specedge-node"),
    ]
    parts.append(f"torch {version('torch')}")
    if settings.quantize != "none":
        parts.append(f"{settings.quantize} weights")
    if settings.emulate:
        parts.append(f"as {settings.emulate} x{settings.stretch:g}")
    return ", ".join(parts)


def _likely_device_and_dtype(settings: NodeSettings) -> tuple[str, str]:
    where = settings.device
    if where == AUTO:
        where = "cuda" if has_cuda_device() else "cpu"
    if settings.dtype != "auto":
        return where, settings.dtype
    return where, "bfloat16" if where.startswith("cuda") else "float32"


@contextmanager
def _download_bar(console: Console) -> Iterator[Report]:
    """A progress bar that appears with the first byte that is downloaded."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task("", total=None, visible=False)

    def report(file_name: str, num_bytes: int, total_bytes: int) -> None:
        bar.start()
        bar.update(
            task,
            description=f"downloading {file_name}",
            completed=num_bytes,
            total=total_bytes,
            visible=True,
        )

    try:
        yield report
    finally:
        bar.stop()
