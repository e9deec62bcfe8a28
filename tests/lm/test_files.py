"""What a download tells; the hub itself is not asked in tests."""

from specedge_p2p.lm.files import _silent_bar


def test_bytes_are_told_once_and_only_upwards() -> None:
    told: list[tuple[str, int, int]] = []
    bar_class = _silent_bar("some/model", lambda *args: told.append(args))
    arriving, on_disk = (bar_class(desc="bytes", total=10, unit="B", initial=0) for _ in range(2))
    files = bar_class(desc="files", total=3)
    arriving.update(4)
    on_disk.update(4)
    files.update(1)
    on_disk.update(6)
    arriving.update(6)
    assert told == [("some/model", 4, 10), ("some/model", 10, 10)]
