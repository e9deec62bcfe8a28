import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from specedge_p2p.demo.models import demo_path
from specedge_p2p.lm.ports import ModelError
from specedge_p2p.lm.text import TemplateRefused, Tokenizer


def copy_of(tmp_path: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_path("demo-draft") / name, tmp_path)
    return tmp_path


def test_the_demo_pair_shares_a_fingerprint() -> None:
    target, draft = Tokenizer.load("demo-target"), Tokenizer.load("demo-draft")
    assert target.fingerprint() == draft.fingerprint()
    assert len(target.fingerprint()) == 16
    assert target.vocab_size == 4096


def test_another_vocabulary_has_another_fingerprint(tmp_path: Path) -> None:
    folder = copy_of(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"].pop()
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert Tokenizer.load(str(folder)).fingerprint() != Tokenizer.load("demo-draft").fingerprint()


def test_a_chat_goes_through_the_template() -> None:
    tokenizer = Tokenizer.load("demo-target")
    ids = tokenizer.encode_chat([{"role": "user", "content": "import os"}])
    assert ids == [0, *tokenizer.encode("import os\n")]
    assert tokenizer.encode("") == [0]


def test_a_template_may_refuse(tmp_path: Path) -> None:
    folder = copy_of(tmp_path)
    with pytest.raises(TemplateRefused, match="no chat template"):
        Tokenizer.load(str(folder)).encode_chat([])
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    with pytest.raises(TemplateRefused, match="no system role"):
        Tokenizer.load(str(folder)).encode_chat([])
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(TemplateRefused, match="broken"):
        Tokenizer.load(str(folder)).encode_chat([])
    (folder / "chat_template.jinja").write_text("{{ messages | tojson }}")
    tokenizer = Tokenizer.load(str(folder))
    assert tokenizer.decode(tokenizer.encode_chat([{"role": "é"}])) == '[{"role": "é"}]'


def test_broken_folders_are_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        Tokenizer.load(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        Tokenizer.load(str(tmp_path))
    with pytest.raises(ModelError, match="no model"):
        Tokenizer.load("nothing-of-the-sort")


def test_no_torch_is_imported() -> None:
    code = (
        "import sys; from specedge_p2p.lm.text import Tokenizer; import specedge_p2p.lm.toy;"
        "Tokenizer.load('demo-target').encode_chat([]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
