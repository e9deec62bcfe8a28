"""The demo pair: two tiny Llama models that speak Python source, as package data."""

from pathlib import Path

DEMO_NAMES = ("demo-target", "demo-draft")


def demo_path(name: str) -> Path:
    """The folder of a demo model; raises ValueError for another name."""
    if name not in DEMO_NAMES:
        raise ValueError(f"the demo models are {' and '.join(DEMO_NAMES)}, not {name!r}")
    return Path(__file__).with_name(name)
