"""Two ranks on gloo, each a real process, against one; and what becomes of them when one dies."""

import io
import json
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from coordinator.engine.models import load_models
from coordinator.engine.settings import EngineSettings
from specedge_p2p.lm import parallel
from specedge_p2p.lm.kv_memory import KvMemory
from specedge_p2p.lm.loader import load_model
from specedge_p2p.lm.parallel import Followers, ParallelModel, ParallelSettings
from specedge_p2p.lm.parallel_calls import (
    AddSequence,
    AdoptPrefix,
    Call,
    Compact,
    DropSequence,
    Forward,
    SharePrefix,
    encode_calls,
    pack_rows,
    read_calls,
    unpack_rows,
)
from specedge_p2p.lm.parallel_group import check_parallel, share_arguments
from specedge_p2p.lm.parallel_worker import follow
from specedge_p2p.lm.ports import BusyModel, LanguageModel, ModelError, Rows
from specedge_p2p.lm.prefix import PrefixNames
from specedge_p2p.lm.toy import ToyModel
from tests.support.parallel_leader import LOST, chunk, play, tree
from tests.support.programs import has_gone
from tests.support.tiny_llama import tiny_runner

pytest.importorskip("accelerate", reason="transformers shares models out with accelerate")

NAMES = PrefixNames("salt", 16).of(list(range(32)), 32)
SHAPE = {
    "vocab_size": 62,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Random models by name, and the demo target."""
    folder = tmp_path_factory.mktemp("models")
    models = {
        "llama": LlamaForCausalLM(LlamaConfig(**SHAPE)),
        "qwen3": Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=True)),
    }
    for name, model in models.items():
        torch.manual_seed(8)
        model.init_weights()
        model.save_pretrained(folder / name)
    return {name: str(folder / name) for name in models} | {"demo-target": "demo-target"}


def lead(settings: ParallelSettings, script: str) -> tuple[int, list[dict[str, Any]]]:
    """The exit code and the lines of a leader; its followers must be gone."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.support.parallel_leader",
            msgspec.json.encode(settings),
            script,
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr
    for pid in lines[0].get("pids", []):
        assert has_gone(pid)
    return done.returncode, lines


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("name", "script"), [("llama", "refuse"), ("qwen3", "play"), ("demo-target", "play")]
)
def test_law1_output_of_two_ranks_is_that_of_one(
    folders: dict[str, str], name: str, script: str
) -> None:
    """Also after rows that the port forbids and a full cache, which all ranks must refuse alike."""
    torch.set_num_threads(1)
    expected = play(load_model(folders[name], dtype="float64", device="cpu", cache_rows=192))
    settings = ParallelSettings(folders[name], 2, "float64", "cpu", 192, 1)
    code, lines = lead(settings, script)
    assert code == 0
    assert lines[0]["rows"] == 192
    assert len(lines[0]["pids"]) == 1
    assert lines[1]["said"] == expected
    assert expected[-2] == [32]
    assert len({tuple(tokens) for tokens in expected}) > 9


@pytest.mark.e2e
def test_what_is_made_for_one_cpu_leaves_shared_layers_alone() -> None:
    """In float32, in which the layers of one process are fused and packed.

    Sums in another order may change a token here and there, and none of them is fed back.
    """
    torch.set_num_threads(1)
    alone = play(load_model("demo-target", dtype="float32", device="cpu", cache_rows=192))
    memory = KvMemory(num_bytes=4 << 20)
    code, lines = lead(ParallelSettings("demo-target", 2, "float32", "cpu", memory, 1), "play")
    assert code == 0
    assert lines[0]["replaced"] == 0
    # a row of one of two key-value heads: 8 layers of keys and values of 32 floats
    assert lines[0]["rows"] == lines[0]["context"] == (4 << 20) // (8 * 2 * 32 * 4)
    expected, said = (list(chain(*each)) for each in (alone, lines[1]["said"]))
    num_equal = sum(a == b for a, b in zip(expected, said, strict=True))
    assert num_equal >= 0.95 * len(expected)


@pytest.mark.e2e
@pytest.mark.parametrize(("script", "text"), [("lose", "rank 1"), ("fail", "injected: True")])
def test_the_leader_ends_when_ranks_are_out_of_step(
    folders: dict[str, str], script: str, text: str
) -> None:
    settings = ParallelSettings(folders["llama"], 2, "float64", "cpu", None, 1)
    code, lines = lead(settings, script)
    assert code == LOST
    assert text in lines[1]["lost"]


LEAVES = "import sys, time; sys.stdin.buffer.read(1); time.sleep(0.2); sys.exit(3)"
STAYS = "import sys; sys.stdin.buffer.read()"


@pytest.mark.parametrize(
    ("follower", "said"),
    [
        (LEAVES, "rank 1 of the target model ended with exit code 3"),
        (STAYS, "a forward failed in the leader: RuntimeError('reset by peer')"),
    ],
)
def test_a_forward_that_a_follower_broke_is_not_called_the_leaders(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, follower: str, said: str
) -> None:
    """What breaks in the leader is known before the end of the process that broke it."""
    monkeypatch.setattr(parallel, "COMMAND", (sys.executable, "-c", follower))
    lost: list[str] = []
    if follower == LEAVES:  # within this time, on any machine
        monkeypatch.setattr(parallel, "REASON_WAIT_S", 60.0)
    followers = Followers(ParallelSettings("some/model", 2), "cpu", tmp_path, lost.append)
    try:
        followers.tell_now(DropSequence(1))
        followers.lose_forward(RuntimeError("reset by peer"))
    finally:
        followers.close()
    assert lost[0] == said


@pytest.mark.e2e
def test_a_broken_weight_file_is_one_clear_line(tmp_path: Path, folders: dict[str, str]) -> None:
    for file in Path(folders["llama"]).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    code, [line] = lead(ParallelSettings(str(tmp_path), 2, "float64", "cpu"), "play")
    assert code == 0
    assert "broken weight file" in line["error"]
    assert "\n" not in line["error"]


def test_what_cannot_be_shared_is_refused() -> None:
    config = LlamaConfig(**SHAPE)
    assert share_arguments(config, "x", 1) == {}
    assert share_arguments(config, "x", 4)
    with pytest.raises(ModelError, match="8 query and 4 key-value heads"):
        share_arguments(config, "x", 8)
    config.base_model_tp_plan = None
    with pytest.raises(ModelError, match="no plan"):
        share_arguments(config, "x", 2)
    with pytest.raises(ModelError, match="torch sees"):
        check_parallel(99, "cuda")
    with pytest.raises(ModelError, match="give cuda"):
        check_parallel(2, "cuda:1")


def test_quantized_weights_are_not_shared_out() -> None:
    settings = EngineSettings("demo-target", quantize="int8", tensor_parallel=2)
    with pytest.raises(ModelError, match="give one of them"):
        load_models(settings)


@st.composite
def any_rows(draw: st.DrawFn) -> Rows:
    tokens = np.array(draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=60)), np.int32)
    if draw(st.booleans()):
        return tree(draw(st.integers(0, 9)), tokens, draw(st.integers(0, 999)))
    return chunk(draw(st.integers(0, 9)), tokens, draw(st.integers(0, 999)), 1)


@given(st.lists(any_rows(), max_size=3), st.none() | st.integers(1, 9), st.integers(0, 3))
def test_calls_survive_the_pipe(batch: list[Rows], width: int | None, num_cut: int) -> None:
    forward = Forward([pack_rows(rows) for rows in batch], width)
    calls: list[Call] = [
        AddSequence(4),
        AdoptPrefix(4, NAMES),
        forward,
        Compact(4, [0, 2], [3]),
        SharePrefix(4, NAMES[:1]),
        DropSequence(4),
    ]
    pipe = io.BytesIO(2 * encode_calls(calls))
    assert read_calls(pipe.read) == calls
    for rows, packed in zip(batch, forward.batch, strict=True):
        again = unpack_rows(packed)
        assert (again.sequence, again.num_outputs) == (rows.sequence, rows.num_outputs)
        for name in ("token_ids", "positions", "visible"):
            np.testing.assert_array_equal(getattr(again, name), getattr(rows, name))
            assert getattr(getattr(again, name), "dtype", 0) == getattr(
                getattr(rows, name), "dtype", 0
            )
    cut = io.BytesIO(encode_calls(calls)[: -1 - num_cut])
    assert read_calls(cut.read) is None


def test_a_follower_keeps_the_books_of_its_leader() -> None:
    leader, follower = (ToyModel(cache_rows=512, page_rows=16) for _ in range(2))
    calls: list[Call] = []
    play(Recorded(leader, calls))
    follow(follower, calls)
    assert len(calls) > 20
    assert follower.num_free_rows == leader.num_free_rows
    assert leader.num_prefix_rows(3) == 37
    for sequence in (0, 2, 3):
        assert follower.num_prefix_rows(sequence) == leader.num_prefix_rows(sequence)
        assert follower.num_tail_rows(sequence) == leader.num_tail_rows(sequence)
    assert follower.num_tail_rows(0) == 1


def test_a_shared_model_lets_others_work_as_its_leader_s_share_does() -> None:
    share, busy = tiny_runner(), [False, True]
    leader = Recorded(share, [])
    assert isinstance(leader, BusyModel)
    leader.while_busy = lambda is_done: busy.append(is_done())
    share.while_busy(busy.pop)
    assert busy == [False, True]
    assert leader.while_busy is share.while_busy


class Recorded(ParallelModel):
    """A leader whose followers are a list."""

    def __init__(self, model: LanguageModel, calls: list[Call]) -> None:
        super().__init__(model, cast(Followers, self))
        self.tell = self.tell_now = calls.append
