import pytest

from tests.benchmarks.binding import Size, run


def test_the_benchmark_binds_and_prints(capsys: pytest.CaptureFixture[str]) -> None:
    (figures,) = run([Size(2, 24, num_drafts=2)], num_rounds=3)
    assert figures.rows_per_session > 0
    assert figures.bind_ms > 0
    assert "2 sessions, 24 live, 2 drafts" in capsys.readouterr().out
