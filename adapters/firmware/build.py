"""Builds the node's firmware: finds a compiler, compiles, links, and checks the sizes against the limits.

Debian's `gcc-arm-none-eabi` or the `ziglang` wheel will do; no C library is needed. By hand: `edge-runtime node build`.
"""

from __future__ import annotations

import importlib.util
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Literal

from edge_runtime.errors import AdapterError, InputError, MissingDependency

FOLDER = Path(__file__).resolve().parent
BOARDS = ("lm3s6965evb",)
TEXT_LIMIT_BYTES = 20 * 1024
RAM_LIMIT_BYTES = 40 * 1024
PROVISION_ADDRESS = 0x3FC00
KEY_BYTES = 32

_COMPILE_TIMEOUT_S = 300
_FAST = frozenset({"nn_dot.c"})  # the inner loops; all else is built for size
_FLAGS = (
    "-std=c11",
    "-ffreestanding",
    "-fno-builtin",
    "-ffunction-sections",
    "-fdata-sections",
    "-fno-common",
    "-fwrapv",
    "-ffp-contract=off",
)
_SMALLER = ("-fno-caller-saves", "-fno-schedule-insns2", "-fno-tree-loop-im")  # gcc: 1 % less code
_WARNINGS = ("-Wall", "-Wextra", "-Werror")
_SHF_WRITE, _SHF_ALLOC, _SHT_NOBITS = 1, 2, 8

CompilerKind = Literal["gcc", "zig"]


class MissingCompiler(MissingDependency):
    """No compiler for the Cortex-M3; the message says how to get one."""

    def __init__(self) -> None:
        super().__init__("a compiler for Arm Cortex-M", "")
        self.msg = (
            "the firmware needs a compiler for Arm Cortex-M, and none was found. "
            "Install one: apt install gcc-arm-none-eabi (Debian, Ubuntu), or pip install ziglang"
        )


@dataclass(frozen=True, slots=True)
class Compiler:
    """A compiler that was found; `command` starts it."""

    kind: CompilerKind
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Firmware:
    """What was built. `text_bytes` is code and constants without the factory model, `ram_bytes` is all RAM with the stack."""

    elf: Path
    image: Path
    text_bytes: int
    model_bytes: int
    ram_bytes: int
    compiler: Compiler


def find_compiler(kind: CompilerKind | None = None) -> Compiler:
    """The first of gcc and zig, or the one that is asked for. Raises MissingCompiler."""
    gcc = shutil.which("arm-none-eabi-gcc")
    if gcc and kind in (None, "gcc"):
        return Compiler("gcc", (gcc,))
    if kind in (None, "zig"):
        if importlib.util.find_spec("ziglang") is not None:
            return Compiler("zig", (sys.executable, "-m", "ziglang", "cc"))
        if zig := shutil.which("zig"):
            return Compiler("zig", (zig, "cc"))
    raise MissingCompiler


def build(out: Path, *, board: str = BOARDS[0], compiler: Compiler | None = None, label: str = "dev") -> Firmware:
    """Builds `firmware.elf` and `firmware.bin` in the folder `out`. `label` (up to 15 ASCII characters) is in the node's *hello*.

    Raises MissingCompiler, InputError for an unknown board or label, AdapterError with the compiler's words when it fails, or when gcc's
    result is larger than the limits.
    """
    if board not in BOARDS:
        raise InputError(f"no firmware for board `{board}` (known: {', '.join(BOARDS)})")
    if not label.isascii() or not label.isprintable() or len(label) > 15 or '"' in label or "\\" in label:
        raise InputError(f"expected a label of at most 15 printable ASCII characters, got {label!r}")
    found = compiler or find_compiler()
    out.mkdir(parents=True, exist_ok=True)
    elf = out / "firmware.elf"
    _link(found, board, _compile(found, board, out, label), elf)
    built = _measured(elf, found)
    if found.kind == "gcc":
        _check_sizes(built)
    return built


def provision_page(*, node_id: int, key: bytes, mac: str, address: str, flags: int = 0) -> bytes:
    """The 64 bytes at PROVISION_ADDRESS that make a firmware one node's own.

    `address` is like `192.168.7.20/24`, `mac` like `02:00:00:00:00:07`.
    """
    octets = bytes.fromhex(mac.replace(":", ""))
    if len(octets) != 6 or octets[0] & 1:
        raise InputError(f"expected a unicast MAC address of 6 bytes, got {mac}")
    if len(key) != KEY_BYTES:
        raise InputError(f"expected a key of {KEY_BYTES} bytes, got {len(key)}")
    interface = IPv4Interface(address)
    page = struct.pack("<4sI6s4s2x4s32sI", b"PROV", node_id, octets, interface.ip.packed, interface.netmask.packed, key, flags)
    return page + struct.pack("<I", zlib.crc32(page))


def _sources(board: str) -> list[Path]:
    return sorted([*(FOLDER / "src").glob("*.c"), *(FOLDER / "boards" / board).glob("*.c")])


def _target(compiler: Compiler) -> tuple[str, ...]:
    if compiler.kind == "gcc":
        return ("-mcpu=cortex-m3", "-mthumb")
    return ("-target", "thumb-freestanding-eabi", "-mcpu=cortex_m3", "-fno-sanitize=all")


def _compile(compiler: Compiler, board: str, out: Path, label: str) -> list[Path]:
    sources = _sources(board)
    include = ("-I", str(FOLDER / "src"), "-I", str(FOLDER / "boards" / board), f'-DFIRMWARE_BUILD="{label}"')

    def one(source: Path) -> Path:
        result = out / f"{source.stem}.o"
        small = "-Os" if compiler.kind == "gcc" else "-Oz"
        level = "-O2" if source.name in _FAST else small
        _run(
            [
                *compiler.command,
                *_target(compiler),
                *_FLAGS,
                *_WARNINGS,
                *_whole_program(compiler, source),
                level,
                *include,
                "-c",
                str(source),
                "-o",
                str(result),
            ]
        )
        return result

    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(one, sources))


def _whole_program(compiler: Compiler, source: Path) -> tuple[str, ...]:
    """Link-time optimisation saves 5 %; the memory functions stay out, for gcc calls them only after it."""
    if compiler.kind != "gcc":
        return ()
    lone = source.name == "bytes.c"
    smaller = () if source.name in _FAST else _SMALLER
    return ("-fno-tree-loop-distribute-patterns", "-fno-lto" if lone else "-flto", *smaller)


def _link(compiler: Compiler, board: str, objects: Sequence[Path], elf: Path) -> None:
    script = FOLDER / "boards" / board / f"{board}.ld"
    common = (*_target(compiler), "-T", str(script), "-Wl,--gc-sections", "-o", str(elf), *map(str, objects))
    if compiler.kind == "gcc":
        _run([*compiler.command, "-Os", "-flto", "-nostdlib", *common, "-lgcc"])
    else:
        _run([*compiler.command, "-Oz", "-nostartfiles", *common])


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as err:
        raise AdapterError(f"{command[0]} could not be run: {err}") from err
    if done.returncode != 0:
        raise AdapterError(f"{command[0]} failed ({done.returncode}):\n{done.stderr.strip()[-4000:]}")


def _measured(elf: Path, compiler: Compiler) -> Firmware:
    """Sizes by section, and the flash image, both from the ELF file itself."""
    data = elf.read_bytes()
    text = model = ram = 0
    for name, kind, flags, size in _sections(data):
        if not flags & _SHF_ALLOC:
            continue
        writable = bool(flags & _SHF_WRITE) or kind == _SHT_NOBITS
        ram += size * writable
        if kind != _SHT_NOBITS:
            model += size * (name == ".model")
            text += size * (name != ".model")
    image = elf.with_suffix(".bin")
    image.write_bytes(_flash_image(data))
    return Firmware(elf, image, text, model, ram, compiler)


def _sections(data: bytes) -> list[tuple[str, int, int, int]]:
    """(name, type, flags, size) of every section of a 32-bit little-endian ELF file."""
    table, entry, count, names_at = (struct.unpack_from("<I", data, 32)[0], *struct.unpack_from("<HHH", data, 46))
    headers = [struct.unpack_from("<10I", data, table + entry * index) for index in range(count)]
    names = headers[names_at][4]

    def name(at: int) -> str:
        return data[names + at : data.index(0, names + at)].decode("ascii")

    return [(name(header[0]), header[1], header[2], header[5]) for header in headers]


def _flash_image(data: bytes) -> bytes:
    """The loadable segments at their places in flash, from address 0."""
    table, entry, count = struct.unpack_from("<I", data, 28)[0], *struct.unpack_from("<HH", data, 42)
    image = bytearray()
    for index in range(count):
        kind, offset, _, address, size = struct.unpack_from("<5I", data, table + entry * index)
        if kind == 1 and size:
            image.extend(b"\xff" * (address + size - len(image)))
            image[address : address + size] = data[offset : offset + size]
    return bytes(image)


def _check_sizes(built: Firmware) -> None:
    for what, size, limit in (("text", built.text_bytes, TEXT_LIMIT_BYTES), ("RAM", built.ram_bytes, RAM_LIMIT_BYTES)):
        if size > limit:
            raise AdapterError(f"the firmware takes {size} bytes of {what}, expected at most {limit}")
