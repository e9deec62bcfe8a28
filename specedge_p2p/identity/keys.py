"""A peer's Ed25519 key and the peer id that follows from it.

The peer id is libp2p's: base58 (bitcoin alphabet) of an identity multihash over the protobuf form
of the public key. For Ed25519 that is a constant prefix before the 32 key bytes, so it needs no
libp2p, and the public key can be read back from the id alone.
"""

import os
import secrets
import stat
from pathlib import Path
from typing import Final, NoReturn, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from specedge_p2p.errors import ClearError
from specedge_p2p.names import PeerId

SIGNATURE_BYTES: Final = 64
_PREFIX: Final = bytes((0x00, 0x24, 0x08, 0x01, 0x12, 0x20))
_ALPHABET: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_DIGITS: Final = {character: digit for digit, character in enumerate(_ALPHABET)}
_PEER_ID_LENGTH: Final = 52  # every Ed25519 id: the fixed prefix leaves no other length
_MAX_KEY_FILE_BYTES: Final = 4096


class IdentityError(ClearError):
    """The key file cannot be used; the text says why and what to do."""


class BadSignature(Exception):
    """The signature does not belong to this peer and these bytes."""


class Identity:
    """The private key of this peer."""

    def __init__(self, private_seed: bytes) -> None:
        """`private_seed` is the raw Ed25519 seed, 32 bytes; ValueError for another length."""
        self._key = Ed25519PrivateKey.from_private_bytes(private_seed)
        public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self._peer_id = peer_id_of(public)

    @classmethod
    def generate(cls) -> Self:
        return cls(secrets.token_bytes(32))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a PEM PKCS8 key file that only its owner can read. Raises IdentityError."""
        key = _parse_pem(path, _read_private(path))
        return cls(key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()))

    @classmethod
    def load_or_create(cls, path: Path) -> Self:
        """Read the key file, or write a new one (mode 0600) where there is none.

        Processes that start at once end up with the same key.
        """
        if not os.path.lexists(path):
            identity = cls.generate()
            identity._create(path)
        return cls.load(path)

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def private_seed(self) -> bytes:
        """The raw Ed25519 seed, 32 bytes: the secret itself, for the overlay's handshake."""
        return self._key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data)

    def __repr__(self) -> str:
        return f"Identity({self._peer_id})"

    def _create(self, path: Path) -> None:
        """Put the whole file in place in one step; an existing file wins and is left alone."""
        pem = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(pem)
                    file.flush()
                    os.fsync(file.fileno())
                os.link(draft, path)  # unlike a rename it never replaces a file
            finally:
                draft.unlink()
        except FileExistsError:
            return
        except OSError as error:
            _fail(path, f"cannot be written: {error.strerror}", error)


def peer_id_of(public_key: bytes) -> PeerId:
    """The peer id of a raw Ed25519 public key of 32 bytes."""
    if len(public_key) != 32:
        raise ValueError("an Ed25519 public key has 32 bytes")
    number = int.from_bytes(_PREFIX + public_key)
    digits = []
    while number:
        number, digit = divmod(number, 58)
        digits.append(_ALPHABET[digit])
    # One leading zero byte, hence one leading "1".
    return PeerId("1" + "".join(reversed(digits)))


def parse_peer_id(text: str) -> PeerId:
    """Check that `text` is the id of an Ed25519 key in its one canonical form, else ValueError."""
    _public_key_bytes(text)
    return PeerId(text)


def verify(peer_id: str, data: bytes, signature: bytes) -> None:
    """Raise BadSignature unless `signature` over `data` is this peer's; ValueError for a bad id."""
    key = Ed25519PublicKey.from_public_bytes(_public_key_bytes(peer_id))
    try:
        key.verify(signature, data)
    except InvalidSignature:
        raise BadSignature(f"not signed by {peer_id}") from None


def _public_key_bytes(text: str) -> bytes:
    """The 32 key bytes of a peer id. The length is checked first, so hostile text costs nothing."""
    if len(text) != _PEER_ID_LENGTH or any(character not in _DIGITS for character in text):
        raise ValueError("not the peer id of an Ed25519 key")
    number = 0
    for character in text:
        number = number * 58 + _DIGITS[character]
    if number >> (8 * 38):
        raise ValueError("not the peer id of an Ed25519 key")
    raw = number.to_bytes(38)
    if not raw.startswith(_PREFIX) or peer_id_of(raw[6:]) != text:
        raise ValueError("not the peer id of an Ed25519 key")
    return raw[6:]


def _read_private(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                _fail(path, f"can be read by others (mode {mode:04o}); run: chmod 600 {path}")
            return file.read(_MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        _fail(path, f"cannot be read: {error.strerror}", error)


def _parse_pem(path: Path, pem: bytes) -> Ed25519PrivateKey:
    if len(pem) > _MAX_KEY_FILE_BYTES:
        _fail(path, "is not a key file: too long")
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:  # TypeError: the key is encrypted
        _fail(path, "is not an unencrypted PEM private key", error)
    except UnsupportedAlgorithm as error:
        _fail(path, "holds a kind of key that is not supported", error)
    if not isinstance(key, Ed25519PrivateKey):
        _fail(path, "holds a key that is not Ed25519")
    return key


def _fail(path: Path, reason: str, cause: Exception | None = None) -> NoReturn:
    raise IdentityError(f"key file {path} {reason}") from cause
