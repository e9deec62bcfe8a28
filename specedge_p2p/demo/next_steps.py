"""What to do with a running demo: lines that work as they are pasted into another terminal."""

import json
import shlex
import shutil
import sys
from pathlib import Path

from specedge_p2p.demo.processes import Endpoints

REQUEST = {"model": "demo-target", "prompt": "def main():\n", "max_tokens": 40}


def next_steps(endpoints: Endpoints, node_home: Path) -> str:
    """Where the network is, how to ask it and how to join it.

    Args:
        endpoints: of its coordinator.
        node_home: for one more node; not the person's own, whose books are of a real network.
    """
    return "\n".join(
        [
            "the network stays up; Ctrl-C stops it",
            *addresses(endpoints),
            "ask it, in another terminal:",
            f"  {curl_line(endpoints.gateway)}",
            "join it with one more node:",
            f"  {join_line(endpoints.addresses[0], node_home)}",
        ]
    )


def addresses(endpoints: Endpoints) -> list[str]:
    return [f"gateway    {endpoints.gateway}/v1", f"dashboard  {endpoints.dashboard}"]


def curl_line(gateway: str) -> str:
    body = shlex.quote(json.dumps(REQUEST))
    return f"curl {gateway}/v1/completions -H 'content-type: application/json' -d {body}"


def join_line(coordinator: str, home: Path) -> str:
    return f"{_node_command()} join --coordinator {coordinator} --home {shlex.quote(str(home))}"


def _node_command() -> str:
    """In full: the other terminal may stand in another folder and have another PATH."""
    beside = Path(sys.executable).with_name("specedge-node")
    found = str(beside) if beside.exists() else shutil.which("specedge-node")
    return shlex.quote(found) if found else f"{shlex.quote(sys.executable)} -m node.cli"
