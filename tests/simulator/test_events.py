from random import Random

import pytest

from tests.simulator.events import Agenda, LinkQuality, Pipe


def test_actions_happen_in_the_order_of_their_time_then_of_their_coming() -> None:
    agenda, seen = Agenda(), []
    for name, time_s in (("b", 2.0), ("a", 1.0), ("c", 2.0)):
        agenda.at(time_s, lambda name=name: seen.append((agenda.now, name)))  # type: ignore[misc]
    agenda.run(lambda: False)
    assert seen == [(1.0, "a"), (2.0, "b"), (2.0, "c")]
    with pytest.raises(ValueError, match="over"):
        agenda.at(1.5, lambda: None)


def test_a_run_ends_when_it_is_over() -> None:
    agenda, seen = Agenda(), []
    for time_s in (1.0, 2.0):
        agenda.after(time_s, lambda: seen.append(agenda.now))
    agenda.run(lambda: bool(seen))
    assert seen == [1.0]


def arrivals(quality: LinkQuality, num: int) -> list[tuple[float, int]]:
    agenda, seen = Agenda(), []
    pipe = Pipe(agenda, quality, Random(3))
    for i in range(num):
        agenda.at(
            i / 1000,
            lambda i=i: pipe.send(lambda: seen.append((agenda.now, i))),  # type: ignore[misc]
        )
    agenda.run(lambda: False)
    return seen


def test_a_pipe_takes_half_a_round_trip() -> None:
    seen = arrivals(LinkQuality(0.02), 3)
    assert [number for _, number in seen] == [0, 1, 2]
    assert [time for time, _ in seen] == pytest.approx([0.010, 0.011, 0.012])


def test_neither_jitter_nor_loss_reorders_or_loses_a_frame() -> None:
    seen = arrivals(LinkQuality(0.02, jitter=0.5, loss=0.02), 400)
    assert [number for _, number in seen] == list(range(400))
    assert [time for time, _ in seen] == sorted(time for time, _ in seen)
    delays = [time - number / 1000 for time, number in seen]
    assert max(delays) > 0.03, "some frame was sent again"
    assert min(delays) < 0.01, "some frame was lucky"


def test_a_cut_loses_what_is_under_way_and_nothing_later() -> None:
    agenda, seen = Agenda(), []
    pipe = Pipe(agenda, LinkQuality(0.02), Random(3))
    agenda.at(0.0, lambda: pipe.send(lambda: seen.append("lost")))
    agenda.at(0.005, pipe.cut)
    agenda.at(0.006, lambda: pipe.send(lambda: seen.append("kept")))
    agenda.run(lambda: False)
    assert seen == ["kept"]
