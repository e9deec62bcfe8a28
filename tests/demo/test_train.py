import sysconfig
from pathlib import Path

import pytest

from specedge_p2p.demo.models import DEMO_NAMES, demo_path
from specedge_p2p.demo.train import TrainSettings, main, rate_factor, read_corpus
from specedge_p2p.lm.loader import load_model
from specedge_p2p.lm.text import Tokenizer


def test_the_pair_is_package_data() -> None:
    for name in DEMO_NAMES:
        assert (demo_path(name) / "model.safetensors").is_file()
    with pytest.raises(ValueError, match="demo-target"):
        demo_path("demo")


def test_the_rate_warms_up_and_falls_to_five_percent() -> None:
    settings = TrainSettings(steps=1000, learning_rate=1.0)
    rates = [rate_factor(step, settings) for step in range(1001)]
    assert rates[0] == 1 / 200
    assert max(rates) == rates[200] == 1
    assert rates[1000] == pytest.approx(0.05)


def test_files_are_held_out_by_their_names(tmp_path: Path) -> None:
    for i in range(400):
        (tmp_path / f"m{i}.py").write_text(str(i))
    (tmp_path / "large.py").write_text("x" * 400_000)
    corpus = read_corpus(tmp_path)
    assert len(corpus.training) + len(corpus.held_out) == 400
    assert 1 <= len(corpus.held_out) <= 25


@pytest.mark.slow
def test_tiny_training_yields_a_loadable_pair(tmp_path: Path) -> None:
    stdlib = Path(sysconfig.get_paths()["stdlib"]) / "json"
    sizes = ["--steps", "3", "--draft-steps", "3", "--batch-size", "2", "--window", "32"]
    main(["--out", str(tmp_path), "--corpus", str(stdlib), "--device", "cpu", *sizes])
    fingerprints = set()
    for name in DEMO_NAMES:
        folder = str(tmp_path / name)
        model = load_model(folder, cache_rows=16)
        tokenizer = Tokenizer.load(folder)
        assert model.info.vocab_size == tokenizer.vocab_size
        assert model.info.eos_token_ids == (1,)
        assert tokenizer.encode_chat([{"role": "user", "content": ""}])[0] == 0
        fingerprints.add(tokenizer.fingerprint())
    assert len(fingerprints) == 1
