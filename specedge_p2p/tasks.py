"""The one thing that a started task needs of trio's task status."""

from typing import Protocol, TypeVar

T_contra = TypeVar("T_contra", contravariant=True)


class TaskStatus(Protocol[T_contra]):
    """`trio.TaskStatus`, told apart from the outdated stubs that libp2p's dependencies install."""

    def started(self, value: T_contra, /) -> None: ...
