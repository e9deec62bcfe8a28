"""What a node is told at its start, parsed once into a frozen object."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import platformdirs

from node.slow_link import LinkConditions
from specedge_p2p.errors import ClearError
from specedge_p2p.lm.quantization import Quantize
from specedge_p2p.overlay.addresses import split_address
from specedge_p2p.overlay.ports import OverlayError

Dtype = Literal["auto", "float32", "bfloat16", "float64"]
Priority = Literal["low", "normal"]
Drafting = Literal["honest", "random", "replay"]
AUTO = "auto"
MAX_SESSIONS = 64
MAX_DRAFT_MODELS = 8


class SettingsError(ClearError):
    """A setting cannot be used; the text is one line that says which and why."""


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """All settings of one node process.

    Args:
        home: folder of the key, the receipts and the last coordinators known.
        coordinators: multiaddresses given by hand, asked first.
        bootstrap: peers through which others are found.
        draft_models: names on the model hub, folders, or "auto"; of several the best is taken.
        max_sessions: most generations drafted for at once.
        threads: CPU threads of the draft model.
        dtype, quantize: arithmetic and weights of the draft model.
        device: where it runs; "auto" takes a GPU if there is one.
        link_delay_s: round trip added to the link, for measuring.
        link_jitter_s, link_loss, link_churn_s, link_seed: see `node.slow_link.LinkConditions`.
        emulate: what levels are padded to, see `node.emulation`; "" for nothing.
        stretch: real seconds that an emulated second takes, for levels and the link.
        report: a file for what the node did, written when it leaves.
        drafting: anything but "honest" is for the network's own tests.
    """

    home: Path
    coordinators: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()
    draft_models: tuple[str, ...] = (AUTO,)
    max_sessions: int = 16
    threads: int = 1
    dtype: Dtype = "auto"
    quantize: Quantize = "none"
    device: str = "auto"
    link_delay_s: float = 0.0
    link_jitter_s: float = 0.0
    link_loss: float = 0.0
    link_churn_s: float = 0.0
    link_seed: int = 0
    emulate: str = ""
    stretch: float = 1.0
    report: Path | None = None
    drafting: Drafting = "honest"

    def __post_init__(self) -> None:
        for address in (*self.coordinators, *self.bootstrap):
            check_address(address)
        if not 1 <= self.max_sessions <= MAX_SESSIONS:
            raise SettingsError(f"--max-sessions is 1 to {MAX_SESSIONS}, not {self.max_sessions}")
        if not 1 <= len(self.draft_models) <= MAX_DRAFT_MODELS:
            raise SettingsError(f"--draft-model is given 1 to {MAX_DRAFT_MODELS} times")
        if not 1 <= self.threads <= 1024:
            raise SettingsError(f"--threads is 1 to 1024, not {self.threads}")
        self._check_measuring()

    def _check_measuring(self) -> None:
        if not 0 <= self.link_delay_s <= 10:
            raise SettingsError("--link-delay-ms is 0 to 10000")
        if not 0 <= self.link_jitter_s <= 10:
            raise SettingsError("--link-jitter-ms is 0 to 10000")
        if not 0 <= self.link_loss <= 0.5:
            raise SettingsError("--link-loss is 0 to 0.5")
        if self.link_loss and not self.link_delay_s:
            raise SettingsError("--link-loss costs round trips: give --link-delay-ms too")
        if not 0 <= self.link_churn_s <= 1e6:
            raise SettingsError("--link-churn-s is 0 to 1000000")
        if not 0.1 <= self.stretch <= 1000:
            raise SettingsError("--stretch is 0.1 to 1000")

    def link_conditions(self, link_no: int) -> LinkConditions:
        """What is added to the node's link_no-th link, in real time."""
        return LinkConditions(
            round_trip_s=self.link_delay_s * self.stretch,
            jitter_s=self.link_jitter_s * self.stretch,
            loss=self.link_loss,
            churn_s=self.link_churn_s * self.stretch,
            seed=f"{self.link_seed}/{link_no}",
        )

    @property
    def key_file(self) -> Path:
        return self.home / "identity.pem"

    @property
    def receipts_file(self) -> Path:
        return self.home / "receipts.sqlite3"

    @property
    def profile_file(self) -> Path:
        return self.home / "profile.json"

    @property
    def known_file(self) -> Path:
        return self.home / "coordinators.json"


def default_home(environ: Mapping[str, str] = os.environ) -> Path:
    """`$SPECEDGE_HOME/node`, or the usual place for a user's data."""
    base = environ.get("SPECEDGE_HOME")
    return Path(base or platformdirs.user_data_dir("specedge")) / "node"


def default_threads(num_cpus: int | None) -> int:
    """One on small machines, where two threads on two cores would wait for each other."""
    return max(1, (num_cpus or 1) // 2) if (num_cpus or 1) > 4 else 1


def check_address(address: str) -> str:
    """A multiaddress that can be dialled: it ends with the peer id. Raises SettingsError."""
    try:
        split_address(address)
    except OverlayError as error:
        raise SettingsError(str(error)) from None
    return address
