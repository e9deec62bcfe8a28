"""An engine process on the toy model: all of the real one but the model; see test_client.py.

The model's name says how it behaves: "toy", "missing" (cannot be loaded), "dies" (at once).
"""

import sys

from coordinator.engine.child import run_child
from coordinator.engine.models import EngineModels, Idle
from coordinator.engine.settings import EngineSettings
from specedge_p2p.lm.ports import ModelError
from specedge_p2p.lm.toy import ToyModel, ToyParams

PARAMS = ToyParams(vocab_size=32)
DRAFT_PARAMS = ToyParams(vocab_size=32, perturbation=0.5)


def load(settings: EngineSettings, _idle: Idle) -> EngineModels:
    if settings.model == "missing":
        raise ModelError("there is no model named missing")
    if settings.model == "dies":
        sys.exit(3)
    draft = ToyModel(DRAFT_PARAMS) if settings.draft_model else None
    return EngineModels(ToyModel(PARAMS), draft)


if __name__ == "__main__":
    sys.exit(run_child(sys.argv[1:], load))
