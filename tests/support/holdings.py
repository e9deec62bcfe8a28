"""How much the objects of a program hold: what must stay level over a long life."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType

_LEAVES = (
    *(str, bytes, bytearray, int, float, complex, bool, type(None), type),
    *(ModuleType, FunctionType, BuiltinFunctionType, CodeType),
)


def holdings(roots: Mapping[str, object], skip: Iterable[type] = ()) -> dict[str, int]:
    """Number of entries of every container that can be reached from `roots`.

    Keys say the way there by attribute names; entries of containers at the same way are summed.
    Objects of the types in `skip` are not entered, nor are those of other people's packages.
    """
    sizes: dict[str, int] = {}
    skipped = tuple(skip)
    seen: set[int] = set()
    keep: list[object] = []  # so that no id is used twice
    todo = list(roots.items())[::-1]
    while todo:
        way, value = todo.pop()
        if isinstance(value, (*_LEAVES, *skipped)) or id(value) in seen:
            continue
        seen.add(id(value))
        keep.append(value)
        if isinstance(value, MethodType):
            todo.append((way, value.__self__))
        elif isinstance(value, Mapping):
            sizes[way] = sizes.get(way, 0) + len(value)
            todo += [(f"{way}{{}}", part) for pair in value.items() for part in pair]
        elif isinstance(value, Collection):
            sizes[way] = sizes.get(way, 0) + len(value)
            todo += [(f"{way}[]", part) for part in _parts(value)]
        todo += [(f"{way}.{name}", part) for name, part in _attributes(value)]
    return sizes


def _parts(value: Collection[object]) -> list[object]:
    """What a container holds; arrays of numbers hold nothing that could hold more."""
    is_plain = isinstance(value, (list, tuple, set, frozenset)) or type(value).__name__ == "deque"
    return list(value) if is_plain else []


def _attributes(value: object) -> Iterator[tuple[str, object]]:
    if type(value).__module__.partition(".")[0] not in OURS:
        return
    names = set(getattr(value, "__dict__", ()))
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        names.update([slots] if isinstance(slots, str) else slots)
    for name in sorted(names, reverse=True):  # the last is looked at first
        if hasattr(value, name):
            yield name, getattr(value, name)


OURS = frozenset({"specedge_p2p", "coordinator", "node", "tests"})
