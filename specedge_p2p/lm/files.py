"""Where a model's files are: package data, a folder, or the hub. No torch."""

import os
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from specedge_p2p.demo.models import DEMO_NAMES, demo_path
from specedge_p2p.lm.ports import ModelError

Progress = Callable[[str, int, int], None]
"""Called with (model name, bytes so far, bytes of what is downloaded as far as known)."""

TOKENIZER_FILES = ("*.json", "*.jinja", "tokenizer.model", "*.txt")
MODEL_FILES = (*TOKENIZER_FILES, "*.safetensors")
_HEAD_BYTES = 65536


def find_model(
    name_or_path: str,
    *,
    patterns: tuple[str, ...] = MODEL_FILES,
    progress: Progress | None = None,
) -> Path:
    """The folder that holds a model's files, downloaded first if it is a hub name.

    Raises ModelError for an unknown model, or without network when nothing is at hand.
    """
    if name_or_path in DEMO_NAMES:
        return demo_path(name_or_path)
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    if name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") != 1:
        raise ModelError(
            f"no model {name_or_path!r}: give {' or '.join(DEMO_NAMES)}, a folder, "
            "or a name of the Hugging Face hub such as Qwen/Qwen3-0.6B"
        )
    return _download(name_or_path, patterns, progress)


def fingerprint(folder: Path) -> bytes:
    """BLAKE2b-16 over the config and the names, sizes and first bytes of the weight files."""
    digest = blake2b(digest_size=16)
    digest.update((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        digest.update(head)
    return digest.digest()


def _download(name: str, patterns: tuple[str, ...], progress: Progress | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        # A model that is here already needs no network. Here are the files that were asked for
        # when it came: without the patterns the hub's client would miss the others.
        at_hand = Path(
            snapshot_download(name, allow_patterns=list(patterns), local_files_only=True)
        )
        if _is_complete(at_hand, patterns):
            return at_hand
    except HFValidationError as error:
        raise ModelError(f"{name!r} cannot be the name of a model of the hub") from error
    except LocalEntryNotFoundError:
        pass
    try:
        bar = _silent_bar(name, progress or _no_progress)
        return Path(snapshot_download(name, allow_patterns=list(patterns), tqdm_class=bar))
    except GatedRepoError as error:
        raise ModelError(
            f"{name} asks for its licence to be accepted: do so on huggingface.co, "
            "then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"the Hugging Face hub knows no model {name!r}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"{name} is not on this machine and cannot be downloaded: {reason}"
        ) from error


def _silent_bar(name: str, progress: Progress) -> Any:  # noqa: ANN401
    """A class of progress bars that show nothing and report downloaded bytes.

    The hub counts bytes twice, as they arrive and as they are on disk: the larger count is told.
    """
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    most_bytes = 0

    class SilentBar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
            self._counts_bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal most_bytes
            self.n += n or 0
            if self._counts_bytes and self.n > most_bytes:
                most_bytes = int(self.n)
                progress(name, int(self.n), int(self.total or 0))
            return None

    return SilentBar


def _no_progress(name: str, done_bytes: int, total_bytes: int) -> None:
    del name, done_bytes, total_bytes


def _is_complete(folder: Path, patterns: tuple[str, ...]) -> bool:
    names = os.listdir(folder)
    if "config.json" not in names or "tokenizer.json" not in names:
        return False
    return "*.safetensors" not in patterns or any(n.endswith(".safetensors") for n in names)
