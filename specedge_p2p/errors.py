"""The one base of all errors that a person can mend."""

from collections.abc import Iterator
from contextlib import contextmanager


class ClearError(Exception):
    """Its text is one line that says what is wrong and what to do; commands end with code 2."""


@contextmanager
def outside_groups() -> Iterator[None]:
    """Raise a ClearError or KeyboardInterrupt itself, not in the groups that nurseries make.

    A group that holds anything else is a bug and passes as it is.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        known, others = group.split((ClearError, KeyboardInterrupt))
        if known is None or others is not None:
            raise
        raise _first_leaf(known) from None


def _first_leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first_leaf(first) if isinstance(first, BaseExceptionGroup) else first
