import numpy as np
import pytest

from specedge_p2p.lm.loader import load_model
from specedge_p2p.lm.ports import LanguageModel
from specedge_p2p.lm.text import Tokenizer
from tests.benchmarks import record
from tests.simulator.traces import trace_key


@pytest.fixture(scope="module")
def target() -> LanguageModel:
    return load_model("demo-target", dtype="float32", device="cpu", threads=1)


def test_with_shared_noise_a_model_foresees_its_own_choices(
    target: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Binds the recorder's positions, temperatures and keys to those of real sampling."""
    monkeypatch.setattr(record, "NUM_NEW", 12)
    prompt = Tokenizer.load("demo-target").encode("def add(self, value):\n    ")
    for temperature in (0.0, 0.7, 1.0):
        key = trace_key(record.SEED, prompt)
        (tokens,) = record.decode(target, [prompt], temperature)
        log_probs = record.log_probs_along(target, tokens, 12)
        assert np.exp(log_probs).sum(axis=1) == pytest.approx(np.ones(12), abs=1e-4)
        guesses = record.ranked(log_probs, temperature, key, len(prompt))
        assert guesses.token_ids[:, 0].tolist() == tokens[len(prompt) :]
        blind = record.ranked(log_probs, temperature, None, len(prompt))
        assert (np.diff(blind.log_probs, axis=1) <= 0).all()
        if temperature == 0:
            assert (blind.token_ids == guesses.token_ids).all()


def test_prompts_are_stretches_of_held_out_files() -> None:
    tokenizer = Tokenizer.load("demo-target")
    prompts = record.held_out_prompts(tokenizer, 4)
    assert len(prompts) == 4
    assert all(64 <= len(prompt) <= 128 for prompt in prompts)
    assert record.held_out_prompts(tokenizer, 4) == prompts
    with pytest.raises(SystemExit):
        record.held_out_prompts(tokenizer, 10_000)
