"""One process per home."""

from pathlib import Path

import pytest

from specedge_p2p.identity.home import only_process
from specedge_p2p.identity.keys import IdentityError


def test_a_home_is_held_by_one_and_free_again(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    with only_process(home, "coordinator"):
        with (
            pytest.raises(IdentityError, match="another coordinator runs from"),
            only_process(home, "coordinator"),
        ):
            pass
        with only_process(tmp_path / "other", "coordinator"):
            pass
    with only_process(home, "coordinator"):
        assert home.is_dir()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(IdentityError, match="cannot use the folder"),
        only_process(tmp_path / "file" / "home", "node"),
    ):
        pass
