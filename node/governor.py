"""How many sessions a volunteer gives: all places, or none while paused."""

from collections.abc import Callable


class Governor:
    """Tells the worker how many sessions to take; sessions that are open go on."""

    def __init__(self, max_sessions: int, set_capacity: Callable[[int], None]) -> None:
        self._max_sessions = max_sessions
        self._set_capacity = set_capacity
        self._is_paused = False

    @property
    def is_paused(self) -> bool:
        return self._is_paused

    def pause(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            self._set_capacity(0)

    def resume(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._set_capacity(self._max_sessions)

    def toggle(self) -> None:
        if self._is_paused:
            self.resume()
        else:
            self.pause()
