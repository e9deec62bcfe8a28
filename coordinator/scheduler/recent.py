"""What is remembered of so many, and of nobody longer than of those heard of since."""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


@dataclass(slots=True)
class Recent(Generic[Key, Value]):
    """The entries that changed last, at most `most` of them."""

    most: int
    entries: OrderedDict[Key, Value] = field(default_factory=OrderedDict)

    def put(self, key: Key, value: Value) -> list[tuple[Key, Value]]:
        """Returns what is forgotten for it."""
        self.entries[key] = value
        self.entries.move_to_end(key)
        num_over = len(self.entries) - self.most
        return [self.entries.popitem(last=False) for _ in range(num_over)]
