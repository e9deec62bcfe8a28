"""Two worlds compared on the same prompts."""

from dataclasses import dataclass

import numpy as np

from tests.simulator.world import World


@dataclass(frozen=True, slots=True)
class Pair:
    """How much faster one world is than another.

    Args:
        ratio: of tokens per second of a full house.
        error: its standard error, by leaving out one generation at a time.
    """

    ratio: float
    error: float


def paired(this: World, other: World) -> Pair:
    """Compare the generations that both worlds finished; they have the same prompts and tokens.

    A generation costs the time of its steps, of each as much as one place of a full house; so what
    the two worlds took for the same generations is what they are compared by.
    """
    numbers = sorted(this.finished & other.finished)
    ours, theirs = (
        np.array([world.place_s[number] for number in numbers]) for world in (this, other)
    )
    count = len(numbers)
    without = (theirs.sum() - theirs) / (ours.sum() - ours)
    spread = ((without - without.mean()) ** 2).sum() * (count - 1) / count
    return Pair(float(theirs.sum() / ours.sum()), float(np.sqrt(spread)))
