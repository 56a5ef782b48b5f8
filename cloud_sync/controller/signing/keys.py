"""Signing keys on disk: Ed25519, one PKCS#8 file each, readable by their owner only. Knows nothing of what is signed.

A file is named `<role>-<first 8 digits of the key id>.pem`: the id tells which key of a rotated role it is, encrypted or not.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, Key

from cloud_sync.controller.signing.files import replace
from edge_runtime.errors import InputError

PublicKey = Key
Signer = CryptoSigner

_ID_DIGITS = 8


class KeyRing:
    """The keys in one folder. `passphrase` opens those that are encrypted, and encrypts new ones."""

    def __init__(self, folder: Path, passphrase: bytes | None = None) -> None:
        self._folder = folder
        self._passphrase = passphrase

    @property
    def folder(self) -> Path:
        return self._folder

    def generate(self, role: str) -> Signer:
        """A new key for `role`, on the disk before it is returned."""
        key = Ed25519PrivateKey.generate()
        signer = Signer(key)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, self._encryption())
        replace(self._path(role, signer.public_key.keyid), text, mode=0o600)
        return signer

    def signers(self, role: str, keyids: Iterable[str]) -> list[Signer]:
        """Those of the keys `keyids` that are in this folder. Raises InputError for one that is damaged, or whose passphrase is wrong."""
        wanted = [(keyid, self._path(role, keyid)) for keyid in keyids]
        return [self._load(path, keyid) for keyid, path in wanted if path.exists()]

    def need(self, role: str, keyids: Iterable[str], count: int) -> list[Signer]:
        """At least `count` of the keys. Raises InputError saying which files are missing."""
        wanted = list(keyids)
        found = self.signers(role, wanted)
        if len(found) < count:
            names = ", ".join(self._path(role, keyid).name for keyid in wanted)
            raise InputError(f"{self._folder} has {len(found)} of the {count} keys that `{role}` needs, out of {names}; bring them there")
        return found

    def forget(self, role: str, keyids: Iterable[str]) -> None:
        """Deletes keys that are rotated out."""
        for keyid in keyids:
            self._path(role, keyid).unlink(missing_ok=True)

    def _path(self, role: str, keyid: str) -> Path:
        return self._folder / f"{role}-{keyid[:_ID_DIGITS]}.pem"

    def _encryption(self) -> KeySerializationEncryption:
        return BestAvailableEncryption(self._passphrase) if self._passphrase else NoEncryption()

    def _load(self, path: Path, keyid: str) -> Signer:
        _check_mode(path)
        text = path.read_bytes()
        encrypted = b"ENCRYPTED" in text
        if encrypted and not self._passphrase:
            raise InputError(f"{path} is encrypted; give its passphrase")
        try:
            key = load_pem_private_key(text, self._passphrase if encrypted else None)
        except (ValueError, TypeError) as err:
            raise InputError(f"{path} is no key that can be read: the passphrase is wrong, or the file is damaged") from err
        if not isinstance(key, Ed25519PrivateKey):
            raise InputError(f"{path}: expected an Ed25519 key")
        signer = Signer(key)
        if signer.public_key.keyid != keyid:
            raise InputError(f"{path} holds another key than its name says; restore it from a backup")
        return signer


def _check_mode(path: Path) -> None:
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise InputError(f"{path} can be read by others (mode {mode:o}); chmod 600 it, and rotate the key if others had access")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} cannot be read by this user")
