"""The wheel holds everything: it runs the demo outside the clone."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]


def run(command: list[str], folder: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = "import sys, hatchling.build as b; print(b.build_wheel(sys.argv[1]))"
    run([sys.executable, "-c", build, str(folder)], ROOT)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_four_packages_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"specedge_p2p", "coordinator", "node", "dashboard"}
    for needed in (
        "specedge_p2p/demo/models/demo-target/model.safetensors",
        "specedge_p2p/demo/models/demo-draft/chat_template.jinja",
        "dashboard/static/dashboard.js",
        "dashboard/templates/network.html",
        "specedge_p2p/py.typed",
    ):
        assert needed in names
    assert any(name.startswith("coordinator/store/migrations/versions/") for name in names)


def test_the_demo_runs_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    where = "import specedge_p2p, coordinator, node, dashboard as d; print(d.__file__)"
    environment = {"PYTHONPATH": str(site)}
    assert run([sys.executable, "-c", where], tmp_path, **environment).startswith(str(site))
    command = [sys.executable, "-m", "specedge_p2p.demo.cli", "--once", "--json", "--nodes", "1"]
    output = run([*command, "--max-tokens", "16"], tmp_path, **environment)
    result = json.loads(output.splitlines()[-1])
    assert result["ledger"]["sum"] == 0
    assert result["num_tokens"] > 16
