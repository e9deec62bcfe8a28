import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import example, given
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from specedge_p2p.identity.keys import (
    BadSignature,
    Identity,
    IdentityError,
    parse_peer_id,
    peer_id_of,
    verify,
)


@given(st.binary(min_size=32, max_size=32))
def test_peer_id_is_the_one_libp2p_derives(seed: bytes) -> None:
    assert Identity(seed).peer_id == str(ID.from_pubkey(create_new_key_pair(seed).public_key))


@given(st.binary(min_size=32, max_size=32))
@example(bytes(32))
@example(b"\xff" * 32)
def test_peer_id_has_one_form_and_gives_the_key_back(public_key: bytes) -> None:
    peer_id = peer_id_of(public_key)
    assert len(peer_id) == 52
    assert parse_peer_id(peer_id) == peer_id


@given(st.text(max_size=60))
@example("1" * 52)
@example("z" * 52)
@example("12D3KooW" + "z" * 44)
@example("１" * 52)
def test_law4_bytes_that_are_no_peer_id_are_one_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="peer id"):
        parse_peer_id(text)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_public_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        peer_id_of(bytes(length))


def test_signature_holds_for_signer_and_bytes_only() -> None:
    identity = Identity.generate()
    signature = identity.sign(b"hello")
    verify(identity.peer_id, b"hello", signature)
    with pytest.raises(BadSignature):
        verify(identity.peer_id, b"hellp", signature)
    with pytest.raises(BadSignature):
        verify(Identity.generate().peer_id, b"hello", signature)
    with pytest.raises(BadSignature):
        verify(identity.peer_id, b"hello", b"short")


def test_identity_shows_no_secret() -> None:
    identity = Identity(bytes(range(32)))
    assert repr(identity) == f"Identity({identity.peer_id})"


def test_key_file_is_private_and_stays_the_same(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "identity.pem"
    created = Identity.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b"BEGIN PRIVATE KEY" in path.read_bytes()
    again = Identity.load_or_create(path)
    assert (again.peer_id, again.private_seed) == (created.peer_id, created.private_seed)
    assert list(path.parent.iterdir()) == [path]


def test_key_file_of_a_faster_process_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "identity.pem"
    winner = Identity.load_or_create(path)
    monkeypatch.setattr(os.path, "lexists", lambda _path: False)
    assert Identity.load_or_create(path).peer_id == winner.peer_id


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_key_file_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity.pem"
    Identity.load_or_create(path)
    path.chmod(mode)
    with pytest.raises(IdentityError, match=f"chmod 600 {path}"):
        Identity.load_or_create(path)


def _ed25519_pem(password: bytes | None = None) -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def _other_pem() -> bytes:
    key = generate_private_key(SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an unencrypted PEM"),
        (b"garbage", "not an unencrypted PEM"),
        (_ed25519_pem()[:40], "not an unencrypted PEM"),
        (_ed25519_pem(b"secret"), "not an unencrypted PEM"),
        (_other_pem(), "not Ed25519"),
        (b"x" * 5000, "too long"),
    ],
)
def test_broken_key_file_is_one_clear_error(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "identity.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(IdentityError, match=reason):
        Identity.load(path)


def test_missing_and_unwritable_places_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="cannot be read"):
        Identity.load(tmp_path / "none.pem")
    blocker = tmp_path / "file"
    blocker.touch()
    with pytest.raises(IdentityError, match="cannot be written"):
        Identity.load_or_create(blocker / "deep" / "identity.pem")
    assert os.listdir(tmp_path) == ["file"]
