"""What the demo and the README tell people to paste is one and the same."""

import json
import shlex
from pathlib import Path

from specedge_p2p.demo.next_steps import curl_line, join_line
from specedge_p2p.demo.run import DEFAULT_PORT

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_has_the_line_of_the_demo() -> None:
    text = README.read_text("utf-8").replace("\\\n    ", "")
    assert curl_line(f"http://127.0.0.1:{DEFAULT_PORT}") in text.splitlines()


def test_a_shell_reads_the_lines_as_they_are_meant() -> None:
    words = shlex.split(curl_line("http://127.0.0.1:1"))
    assert words[1] == "http://127.0.0.1:1/v1/completions"
    assert json.loads(words[-1])["model"] == "demo-target"
    home = Path("/tmp/a folder")
    assert shlex.split(join_line("/ip4/127.0.0.1/tcp/1/p2p/X", home))[-1] == str(home)
