"""The engine's benchmark: its parts compute what they are compared with, and its figures add up."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.benchmarks.__main__ import app
from tests.benchmarks.engine import EngineEffort, EngineFigures, EngineRow, at_least, at_most
from tests.benchmarks.engine_forwards import DraftLevel, Verification, level_section
from tests.benchmarks.engine_generation import Generator, PlainGenerator
from tests.benchmarks.engine_models import DRAFT, TARGET, TreeShape, pair, prompts
from tests.benchmarks.engine_profile import host_section
from tests.benchmarks.interleaved import Times, interleaved


def test_actions_are_taken_in_turns() -> None:
    order: list[str] = []
    times = interleaved(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")},
        2,
        lambda: order.append("-"),
    )
    assert "".join(order) == "-ab-ab-ab"
    assert [len(seconds) for seconds in times.seconds.values()] == [2, 2]


def test_a_ratio_is_the_median_of_neighbours() -> None:
    times = Times({"a": [1.0, 8.0, 3.0], "b": [1.0, 2.0, 1.0]})
    assert times.ratio("a", "b") == 3.0
    assert times.median_s("a") == 3.0
    assert times.spread("a", "b") == pytest.approx(0.75)
    assert Times({"a": [1.0], "b": [2.0]}).spread("a", "b") == 0.0


def test_a_check_holds_on_its_own_side_of_the_bound() -> None:
    assert at_least("x", 1.2, 1.1).holds
    assert not at_least("x", 1.0, 1.1).holds
    assert at_most("x", 1.0, 1.1).holds
    assert not at_most("x", 1.2, 1.1).holds


def test_figures_are_put_together() -> None:
    one = EngineFigures((EngineRow("a", 1.0),), (at_most("x", 1.0, 1.1),))
    assert [row.name for row in (one + one).rows] == ["a", "a"]
    assert len((one + one).checks) == 2


def test_a_binary_tree() -> None:
    shape = TreeShape(5)
    assert shape.parents == [0, 0, 1, 1]
    assert shape.depths == [0, 1, 1, 2, 2]
    assert shape.masks == [0b1, 0b11, 0b101, 0b1011, 0b10011]


@pytest.fixture
def verification() -> Iterator[Verification]:
    found = Verification(2, 3)
    yield found
    found.close()


def test_the_forward_by_hand_chooses_the_same_tokens(verification: Verification) -> None:
    first = verification.ours()
    assert len(first) == 6
    assert verification.by_hand() == first
    assert verification.ours() == first  # nothing of a turn is left to the next


def test_all_ways_to_generate_say_the_same() -> None:
    target, draft = pair(TARGET), pair(DRAFT)
    texts = prompts(2)
    expected = PlainGenerator(target.plain, 8).run(texts)
    assert Generator(target.ours, 8, None).run(texts, None) == expected
    assert Generator(target.ours, 8, draft.ours).run(texts, (2, 2)) == expected
    assisted = PlainGenerator(target.plain, 8, draft.plain)
    assert [assisted.run([text])[0] for text in texts] == expected


def test_a_level_has_as_many_rows_as_the_bare_forward() -> None:
    level = DraftLevel(2, 4)
    level.prepare()
    level.level()
    level.expand()
    level.bare()
    level.bare()
    level.close()
    with pytest.raises(RuntimeError, match="a level of 0 rows"):
        level.level()


def test_the_parts_of_a_step_add_up() -> None:
    figures = host_section(EngineEffort(num_repeats=2))
    by_name = {row.name.strip(): row.time_ms for row in figures.rows[:7]}
    whole = by_name["step 8x9 at temperature 0"]
    parts = by_name["host"] + by_name["forward"] + by_name["sampling"]
    assert parts == pytest.approx(whole)
    assert 0 < by_name["of it attention"] < by_name["forward"]
    assert [check.name for check in figures.checks] == ["cpu/host-share"]


def test_the_command_writes_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = EngineFigures((EngineRow("one", 2.0, "other", 0.5),), (at_most("cpu/x", 1.0, 2.0),))
    monkeypatch.setattr("tests.benchmarks.__main__.SECTIONS", (("cpu/x", lambda effort: figures),))
    result = CliRunner().invoke(app, ["engine", "--json", str(tmp_path / "figures.json")])
    assert result.exit_code == 0, result.output
    assert "holds  cpu/x: 1.00" in result.output
    content = json.loads((tmp_path / "figures.json").read_text("utf-8"))
    assert set(content) == {"machine", "rows", "checks"}
    assert content["checks"][0]["name"] == "cpu/x"
    assert CliRunner().invoke(app, ["engine", "--only", "gpu"]).exit_code == 2


def test_levels_name_all_sizes() -> None:
    names = [check.name for check in level_section(EngineEffort(num_repeats=1)).checks]
    assert names == ["cpu/level-1x16", "cpu/level-4x8", "cpu/level-8x8"]
