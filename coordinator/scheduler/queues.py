"""Who goes first where not all can: skip-join multi-level feedback queues.

After FastServe (Wu et al., Fast Distributed Inference Serving for Large Language Models,
arXiv:2305.05920, section 4.1). How much a prompt costs is known, how long an answer grows is not.
So a session joins the queue whose quantum its prompt fits into instead of sinking through those
above, falls by a queue whenever it has used up a quantum, and rises by one whenever it was left
waiting. Short sessions overtake long ones, and long ones still move.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """Shape of the queues; queue 0 goes first.

    Args:
        num_queues: how many there are.
        first_quantum_s: engine time that queue 0 grants.
        growth: how many times as much each further queue grants.
        patience_s: a session without service for this long rises by one queue.
    """

    num_queues: int = 8
    first_quantum_s: float = 0.05
    growth: float = 2.0
    patience_s: float = 1.0

    def __post_init__(self) -> None:
        if self.num_queues < 1 or self.growth <= 1:
            raise ValueError("queues are one or more, with quanta that grow")
        if self.first_quantum_s <= 0 or self.patience_s <= 0:
            raise ValueError("quantum and patience must be positive")

    def quantum_s(self, queue: int) -> float:
        return self.first_quantum_s * self.growth**queue

    def queue_for(self, cost_s: float) -> int:
        """The first queue whose quantum the cost fits into, or the last one."""
        last = self.num_queues - 1
        return next((i for i in range(last) if cost_s <= self.quantum_s(i)), last)


@dataclass(slots=True)
class _Place:
    queue: int
    since_s: float
    """When it was last served or moved up, or else when it joined."""
    used_s: float = 0.0


class Queues:
    """The queue of each live session. Time is an argument and never goes back."""

    def __init__(self, settings: QueueSettings | None = None) -> None:
        self._settings = settings or QueueSettings()
        self._places: dict[int, _Place] = {}

    def __len__(self) -> int:
        return len(self._places)

    def join(self, session: int, cost_s: float, now: float) -> None:
        """A session whose prompt costs `cost_s` of engine time; joining again begins anew."""
        self._places[session] = _Place(self._settings.queue_for(cost_s), now)

    def charge(self, session: int, cost_s: float, now: float) -> None:
        """It was served and used `cost_s` of engine time. Unknown sessions are ignored."""
        place = self._places.get(session)
        if place is None:
            return
        place.since_s = now
        place.used_s += cost_s
        last = self._settings.num_queues - 1
        while place.queue < last and place.used_s >= self._settings.quantum_s(place.queue):
            place.used_s -= self._settings.quantum_s(place.queue)
            place.queue += 1

    def queue(self, session: int, now: float) -> int:
        """0 goes first; unknown sessions stand last."""
        place = self._places.get(session)
        if place is None:
            return self._settings.num_queues - 1
        patience_s = self._settings.patience_s
        if place.queue and now - place.since_s >= patience_s:
            num_up = min(place.queue, int((now - place.since_s) / patience_s))
            place.queue -= num_up
            place.since_s += num_up * patience_s
            place.used_s = 0.0
        return place.queue

    def leave(self, session: int) -> None:
        """It has ended."""
        self._places.pop(session, None)
