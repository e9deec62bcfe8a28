import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduler.voices import MAX_VOICES, Voices
from specedge_p2p.names import PeerId


def test_what_is_believed_before_anything_was_seen() -> None:
    voices = Voices(0.99)
    assert voices.share(0.7, 8.0) == 0.7
    voices.observe(PeerId("a"), 3.0, 4.0)
    assert voices.share(0.7, 0.0) == pytest.approx(0.75)
    assert voices.share(0.7, 3.0) == pytest.approx(0.725)


def test_who_brings_nothing_has_no_say_but_the_engine_has() -> None:
    voices = Voices(0.99)
    for _ in range(100):
        voices.observe(PeerId("honest"), 1.0, 2.0)
    before = voices.share(0.5, 8.0)
    for number in range(MAX_VOICES - 1):
        voices.observe(PeerId(f"liar {number}"), 0.0, 50.0)
    assert voices.share(0.5, 8.0) == before
    voices.observe_own(0.0, 50.0)
    assert voices.share(0.5, 8.0) < 0.6 * before


def test_law7_bounded_the_longest_unheard_voice_is_forgotten() -> None:
    voices = Voices(0.995)
    for number in range(4 * MAX_VOICES):
        voices.observe(PeerId(str(number)), float(number % 2), 1.0)
    assert len(voices._voices.entries) == MAX_VOICES
    assert voices._weight == pytest.approx(MAX_VOICES / 2)
    assert voices.share(0.5, 8.0) == pytest.approx((4 + 128) / (8 + 128))


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.floats(0.0, 8.0), st.floats(0.01, 8.0)), max_size=200
    ),
    st.floats(0.9, 1.0),
)
def test_the_sums_are_those_of_the_voices(
    seen: list[tuple[str, float, float]], kept: float
) -> None:
    voices = Voices(kept)
    known: dict[str, tuple[float, float]] = {}
    for name, came, expected in seen:
        voices.observe(PeerId(name), came, expected)
        before = known.get(name, (0.0, 0.0))
        known[name] = (kept * before[0] + came, kept * before[1] + expected)
    weight = sum(came for came, _ in known.values())
    weighed = sum(came * came / expected for came, expected in known.values())
    assert voices.share(0.5, 4.0) == pytest.approx((2.0 + weighed) / (4.0 + weight), rel=1e-6)
