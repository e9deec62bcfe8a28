"""Loading a draft model: the node's only door to the part that imports torch."""

from collections.abc import Callable

from node.dishonest import GuessingModel
from node.hardware import benchmark
from node.join import Draft
from node.settings import NodeSettings
from specedge_p2p.lm.ports import LanguageModel


def prepare_draft(name: str, settings: NodeSettings, clock: Callable[[], float]) -> Draft:
    """Load a model by name or from a folder and measure it. Blocks; raises ModelError.

    Args:
        name: on the model hub, or a folder, or one of the demo models.
        settings: dtype, device and threads.
        clock: seconds, rising.
    """
    # Imported here: torch takes seconds, and `--help` should not.
    from specedge_p2p.lm.loader import load_model
    from specedge_p2p.lm.text import Tokenizer

    tokenizer = Tokenizer.load(name)
    model: LanguageModel = load_model(name, settings.dtype, settings.device)
    if settings.drafting == "random":
        model = GuessingModel(model, seed=1)
    measured = benchmark(model, clock)
    return Draft(name, model, tokenizer.fingerprint(), measured)
