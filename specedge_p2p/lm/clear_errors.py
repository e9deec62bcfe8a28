"""What running a model on a device may raise, made into what the port promises."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from specedge_p2p.lm.ports import ModelError, OutOfMemory


@contextmanager
def clear_forward_errors() -> Iterator[None]:
    """What a forward may raise, so that only who asked for it is hurt.

    No memory for the activations is met as a full cache is: with fewer rows. After an error of the
    device itself nothing can be computed any more, and the process has to die of it.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory("no memory is left for the forward") from error
    except torch.AcceleratorError:
        raise
    except RuntimeError as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ModelError(f"the forward failed: {line}") from error


@contextmanager
def clear_choice_errors() -> Iterator[None]:
    """No memory for choosing tokens is no full cache: the forward's rows are written already."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelError("no memory is left to choose tokens") from error
