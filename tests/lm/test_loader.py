import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from specedge_p2p.demo.models import demo_path
from specedge_p2p.lm.loader import load_model
from specedge_p2p.lm.ports import ModelError, Rows, SamplingParams
from specedge_p2p.lm.text import Tokenizer
from tests.reference import decode

PROMPT = "import os\n\n\ndef read_lines(path):\n"


def copy_of(tmp_path: Path) -> Path:
    shutil.copytree(demo_path("demo-draft"), tmp_path, dirs_exist_ok=True)
    return tmp_path


def change_config(folder: Path, **changes: object) -> str:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return str(folder)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_law1_output_demo_model_equals_the_plain_decoder(temperature: float) -> None:
    model = load_model("demo-draft", dtype="float64", threads=1, cache_rows=64)
    twin = AutoModelForCausalLM.from_pretrained(demo_path("demo-draft"), dtype=torch.float64)
    prompt = Tokenizer.load("demo-draft").encode(PROMPT)
    key, sampling = bytes(range(16)), SamplingParams(temperature=temperature)
    model.add_sequence(0, sampling, key)
    tokens: list[int] = []
    rows = prompt
    while len(tokens) < 24:
        start = model.num_prefix_rows(0)
        positions = np.arange(start, start + len(rows), dtype=np.int32)
        [[token]] = model.choose([Rows(0, np.array(rows, np.int32), positions, None, 1)])
        tokens.append(int(token))
        rows = [int(token)]
    assert tokens == decode(twin, prompt, sampling, key, 24)


def test_info_says_what_was_loaded(tmp_path: Path) -> None:
    model = load_model("demo-draft", cache_rows=100)
    info = model.info
    assert (info.name, info.vocab_size, info.max_context) == ("demo-draft", 4096, 2048)
    assert info.eos_token_ids == (1,)
    assert model.num_free_rows == 112
    folder = copy_of(tmp_path)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    other = load_model(str(folder), cache_rows=16).info
    assert other.eos_token_ids == (1, 2)
    assert other.fingerprint == info.fingerprint
    change_config(folder, rms_norm_eps=1e-5)
    assert load_model(str(folder), cache_rows=16).info.fingerprint != info.fingerprint


def test_a_truncated_weight_file_is_refused(tmp_path: Path) -> None:
    folder = copy_of(tmp_path)
    weights = folder / "model.safetensors"
    for size in (0, 5, 5000, weights.stat().st_size - 100):
        weights.write_bytes(weights.read_bytes()[:size])
        with pytest.raises(ModelError, match="broken weight file"):
            load_model(str(folder))
        shutil.copy(demo_path("demo-draft") / "model.safetensors", weights)
    weights.unlink()
    with pytest.raises(ModelError, match="weights cannot be read"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "t5"}, "not a causal"),
        ({"model_type": "no-such-kind"}, "not understood"),
        ({"num_hidden_layers": 3}, "weights are missing"),
        ({"hidden_size": 128}, "not understood"),
        ({"intermediate_size": 64}, "do not fit"),
    ],
)
def test_what_cannot_be_run_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(change_config(copy_of(tmp_path), **changes))


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model"):
        load_model(str(tmp_path / "nothing"))
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(str(tmp_path))
    unknown: Any = "int4"
    with pytest.raises(ModelError, match="dtype"):
        load_model("demo-draft", dtype=unknown)


@pytest.mark.parametrize("hub", ["http://127.0.0.1:9", "offline"])
def test_no_network_is_said_in_one_line(tmp_path: Path, hub: str) -> None:
    """In a process of its own, for the hub's address is read once."""
    code = (
        "from specedge_p2p.lm.files import find_model\n"
        "from specedge_p2p.lm.ports import ModelError\n"
        "try: find_model('some/model')\n"
        "except ModelError as error: print(error)"
    )
    hub_env = {"HF_HUB_OFFLINE": "1"} if hub == "offline" else {"HF_ENDPOINT": hub}
    environment = {**os.environ, **hub_env, "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert "some/model is not on this machine and cannot be downloaded" in done.stdout
    assert done.stdout.count("\n") == 1


LOADING = """
import sys
from specedge_p2p.lm.loader import load_model

load_model("demo-draft", threads=1, cache_rows=64)
assert "torchao" not in sys.modules
import torchao
"""


def test_a_model_that_is_not_quantized_is_loaded_without_torchao(tmp_path: Path) -> None:
    """transformers imports it wherever it is installed; a small stand-in is, here."""
    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao" / "__init__.py").write_text("print('imported')")
    (tmp_path / "torchao-99.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: torchao\nVersion: 99.0\n"
    (tmp_path / "torchao-99.0.dist-info" / "METADATA").write_text(metadata)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", LOADING],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "imported\n"), done.stderr
