"""A board of one's own: its page of flash, and openocd, which writes firmware and page.

Tried with openocd only as far as one gets without a board.
"""

from __future__ import annotations

import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from ipaddress import AddressValueError, IPv4Interface, NetmaskValueError
from pathlib import Path

from adapters.firmware.build import BOARDS, KEY_BYTES, PROVISION_ADDRESS, provision_page
from adapters.firmware.emulator import cached_firmware
from edge_runtime.errors import InputError, MissingDependency

NO_COAP_LINES, NO_COAP_MODELS = 1, 2

_CONFIGS: Mapping[str, str] = {"lm3s6965evb": "board/ek-lm3s6965.cfg"}


class MissingFlasher(MissingDependency):
    """No openocd; the message says how to get it."""

    def __init__(self) -> None:
        super().__init__("openocd", "")
        self.msg = "flashing a board needs openocd, which was not found. Install it: apt install openocd (Debian, Ubuntu)"


def provision(out: Path, *, node_id: int, address: str, readonly: bool, key: Path | None) -> dict[str, str]:
    """Writes a node's page, and a new key beside it where none is given; returns what was written. Raises InputError."""
    if not 1 <= node_id <= 0xFFFF:
        raise InputError(f"--id: expected 1 to 65535, got {node_id}")
    try:
        IPv4Interface(address)
    except (AddressValueError, NetmaskValueError) as err:
        raise InputError(f"--address: expected an IPv4 address with its network, such as 192.168.7.20/24, got {address!r}") from err
    mac = f"02:00:00:00:{node_id >> 8:02x}:{node_id & 0xFF:02x}"
    key_path = key or out.with_suffix(".key")
    page = provision_page(
        node_id=node_id, key=_key(key_path, new=key is None), mac=mac, address=address, flags=(NO_COAP_LINES | NO_COAP_MODELS) * readonly
    )
    _write(out, page)
    return {"page": str(out), "key": str(key_path), "mac": mac, "address": address}


def flash(elf: Path | None, page: Path | None, *, dry_run: bool, board: str = BOARDS[0]) -> int:
    """openocd's own exit code; it speaks for itself. Raises MissingFlasher, MissingCompiler, InputError."""
    programs = [f"program {_braced(elf or cached_firmware(board))} verify"]
    if page is not None:
        programs.append(f"program {_braced(page)} {PROVISION_ADDRESS:#x} verify")
    command = [shutil.which("openocd") or "openocd", "-f", _CONFIGS[board]]
    for program in (*programs, "reset run", "exit"):
        command += ["-c", program]
    sys.stdout.write(shlex.join(command) + "\n")
    if dry_run:
        return 0
    if command[0] == "openocd":
        raise MissingFlasher
    sys.stdout.flush()
    return subprocess.run(command, check=False).returncode


def _key(path: Path, *, new: bool) -> bytes:
    if not new:
        try:
            return path.read_bytes()
        except OSError as err:
            raise InputError(f"{path}: cannot be read: {err.strerror}") from err
    if path.exists():
        raise InputError(f"{path} is there already; name it with --key to use it, or another --out")
    key = secrets.token_bytes(KEY_BYTES)
    path.touch(mode=0o600)
    path.write_bytes(key)
    return key


def _write(path: Path, content: bytes) -> None:
    """The page holds the key too: for its owner only."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(content)


def _braced(path: Path) -> str:
    """A path as one word of openocd's Tcl."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; make it with `edge-runtime node build` or `node provision`")
    if any(letter in str(path) for letter in "{}\\"):
        raise InputError(f"{path}: openocd cannot take a path with braces or backslashes; move the file")
    return "{" + str(path.resolve()) + "}"
