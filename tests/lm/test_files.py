"""What a download tells, and when there is none; the hub itself is not asked in tests."""

import json
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from specedge_p2p.lm.files import TOKENIZER_FILES, _silent_bar, find_model
from specedge_p2p.lm.ports import ModelError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class AskedTheHub(Exception):
    pass


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model as the hub's client leaves it: the files asked for, and a list of all there are."""

    def ask(*_: object, **__: object) -> None:
        raise AskedTheHub

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(HfApi, "repo_info", ask)
    model = tmp_path / "models--some--model"
    snapshot = model / "snapshots" / COMMIT
    for folder in (snapshot, model / "refs", model / "trees"):
        folder.mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    wanted = ("config.json", "tokenizer.json", "model.safetensors")
    for name in wanted:
        (snapshot / name).touch()
    files = {name: {"size": 0, "blob_id": "0" * 40} for name in (*wanted, "pytorch_model.bin")}
    listing = model / "trees" / f"{COMMIT}.json"
    listing.write_text(json.dumps({"format_version": 1, "files": files}))
    return snapshot


def test_a_model_that_is_here_needs_no_hub(snapshot: Path) -> None:
    assert find_model("some/model") == snapshot


def test_a_model_of_which_a_part_is_here_is_asked_for(snapshot: Path) -> None:
    (snapshot / "model.safetensors").unlink()
    assert find_model("some/model", patterns=TOKENIZER_FILES) == snapshot
    with pytest.raises(AskedTheHub):
        find_model("some/model")


def test_bytes_are_told_once_and_only_upwards() -> None:
    told: list[tuple[str, int, int]] = []
    bar_class = _silent_bar("some/model", lambda *args: told.append(args))
    arriving, on_disk = (bar_class(desc="bytes", total=10, unit="B", initial=0) for _ in range(2))
    files = bar_class(desc="files", total=3)
    arriving.update(4)
    on_disk.update(4)
    files.update(1)
    on_disk.update(6)
    arriving.update(6)
    assert told == [("some/model", 4, 10), ("some/model", 10, 10)]


@pytest.mark.parametrize("name", ["a b/c", "a/b..c", "a--b/c", "a/b\n", "a/" + "x" * 100])
def test_an_odd_name_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ModelError, match="cannot be the name") as caught:
        find_model(name)
    assert "\n" not in str(caught.value)
