"""The whole firmware as a program of this machine, under the address and undefined-behaviour sanitizers, fed with noise."""

from __future__ import annotations

import random
import struct
import subprocess
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from adapters.firmware.build import FOLDER
from adapters.firmware.native import MissingHostCompiler, host_compiler
from models.export_c.blob import sign
from tests.adapters.firmware.conftest import MakeBlob
from tests.adapters.firmware.test_node_garbage import ARP, burst, echo_request, udp_packet
from tests.adapters.firmware.uart import frame

HOST = Path(__file__).parent / "host"
UART, ETHERNET, TIME, READS = range(4)
RESETS = (0x0A, 0x13)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C library keeps its memory functions: the firmware's own get other names."""
    try:
        compiler = host_compiler()
    except MissingHostCompiler as err:
        pytest.skip(str(err))
    out = tmp_path_factory.mktemp("host") / "firmware"
    renamed = [f"-D{name}=firmware_{name}" for name in ("memcpy", "memset", "memmove", "memcmp", "main")]
    flags = ["-std=gnu11", "-O1", "-g1", "-fwrapv", "-fno-builtin", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    include = ["-I", str(FOLDER / "src"), "-I", str(HOST)]

    def compiled(source: Path) -> str:
        made = str(out.with_name(f"{source.stem}.o"))
        subprocess.run([compiler, *flags, *renamed, *include, "-c", str(source), "-o", made], check=True, timeout=100)
        return made

    with ThreadPoolExecutor(4) as pool:
        objects = list(pool.map(compiled, sorted((FOLDER / "src").glob("*.c"))))
    link = [compiler, *flags, *include, str(HOST / "board.c"), *objects, "-o", str(out)]
    done = subprocess.run(link, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0 and "san" in done.stderr:
        pytest.skip("the compiler has no sanitizers: " + done.stderr.splitlines()[0])
    assert done.returncode == 0, done.stderr
    return out


def record(kind: int, data: bytes) -> bytes:
    return struct.pack("<BH", kind, len(data)) + data


class Outcome(NamedTuple):
    resets: int
    turns: int
    sent: int
    frames: int
    levels: str
    longest_ms: int


def run(program: Path, records: bytes) -> Outcome:
    done = subprocess.run([str(program)], input=records, capture_output=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    resets, turns, sent, frames, levels, longest = done.stdout.decode().split()
    return Outcome(int(resets), int(turns), int(sent), int(frames), levels, int(longest))


def request(choice: random.Random) -> bytes:
    """A whole request of any kind but a reset, its content random."""
    kind = choice.choice([number for number in range(1, 0x40) if number not in RESETS])
    size = choice.choice((0, 1, 2, 3, 6, 12, 16, choice.randrange(1041)))
    return frame(kind if choice.random() < 0.3 else choice.choice((4, 5, 6, 7, 8, 0x10, 0x11, 0x12, 0x14, 0x15)), 1, choice.randbytes(size))


def coap(choice: random.Random) -> bytes:
    """A message with options that mean something, in any order and size."""
    words = (b"temp", b"gpio", b"0", b"infer", b"model", b"info", b"\x06", b"\x1e", b"")
    options = bytearray()
    for _ in range(choice.randrange(5)):
        value = choice.choice((*words, choice.randbytes(choice.randrange(300))))
        delta = choice.choice((0, 0, 4, 6, 11, 12, choice.randrange(16)))
        options.append(delta << 4 | min(len(value), 13))
        options += choice.randbytes(1) if delta == 13 else b""
        options += bytes([len(value) - 13 & 255]) if len(value) >= 13 else b""
        options += value
    payload = choice.choice((b"", b"\xff", b"\xff1 1000", b"\xfftrial 9", b"\xff" + choice.randbytes(choice.randrange(1100))))
    token = choice.randbytes(choice.randrange(9))
    head = bytes([choice.randrange(4) << 4 | 0x40 | len(token), choice.choice((0, 1, 2, 3, 4, 69, choice.randrange(256)))])
    return head + choice.randbytes(2) + token + bytes(options) + payload


def stimulus(choice: random.Random) -> bytes:
    kind = choice.randrange(9)
    if kind < 3:
        return record(UART, request(choice))
    if kind == 3:
        return record(UART, burst(choice))
    if kind < 6:
        return record(ETHERNET, udp_packet(coap(choice)))
    if kind == 6:
        wrong = bytearray(choice.choice((ARP, echo_request(bytes(50)), udp_packet(bytes(1280)), choice.randbytes(1600))))
        for _ in range(choice.randrange(5)):
            wrong[choice.randrange(len(wrong))] = choice.randrange(256)
        return record(ETHERNET, bytes(wrong[: choice.randrange(len(wrong) + 1)] if choice.random() < 0.5 else wrong))
    if kind == 7:
        return record(TIME, struct.pack("<H", choice.choice((1, 50, 200, 2000, 60000))))
    return record(READS, bytes([choice.random() < 0.8]))


@pytest.mark.parametrize("seed", range(3))
def test_noise_of_every_kind_touches_no_memory_that_it_may_not(program: Path, seed: int) -> None:
    choice = random.Random(seed)
    outcome = run(program, b"".join(stimulus(choice) for _ in range(12_000)))
    assert outcome.resets == 0
    assert outcome.turns >= 12_000
    assert outcome.sent > 10_000
    assert outcome.frames > 500
    assert outcome.longest_ms <= 1000, "no turn of the loop is held up by a link that stands still"


def test_a_link_that_stands_still_is_waited_for_once(program: Path) -> None:
    """A hundred requests whose replies nobody reads: their lease ends as if the link were well."""
    records = record(UART, b"\0" + frame(7, 1, struct.pack("<BBI", 0, 1, 1000))) + record(READS, b"\0")
    records += b"".join(record(UART, frame(1, number, bytes(64))) for number in range(100))
    before = run(program, records)
    assert before.levels == "1000"
    assert before.longest_ms <= 260
    after = run(program, records + record(TIME, struct.pack("<H", 1000)) + record(UART, b"\0") * 3)
    assert after.levels == "0000"


@pytest.mark.parametrize("seed", range(2))
def test_a_signed_model_with_anything_wrong_is_refused_or_runs_within_its_memory(program: Path, blob: MakeBlob, seed: int) -> None:
    """Damage in header and layers, checksums and signature right: what is accepted is tried and run once."""
    choice = random.Random(seed)
    image = blob(2)
    records = record(UART, b"\0")
    for number in range(300):
        content = bytearray(image[:-36])
        for _ in range(choice.randrange(1, 4)):
            content[choice.randrange(16, 96 + 3 * 64)] = choice.choice((0, 1, 2, 127, 128, 255, choice.randrange(256)))
        wrong = sign(bytes(content), bytes(range(32)))
        records += record(UART, frame(0x10, number, struct.pack("<III", len(wrong), zlib.crc32(wrong), 2)))
        for at in range(0, len(wrong), 1024):
            records += record(UART, frame(0x11, number, struct.pack("<I", at) + wrong[at : at + 1024]))
        records += record(UART, frame(0x12, number)) + record(UART, frame(0x13, number, b"\x09\0"))
        records += b"".join(record(UART, frame(0x06, number, bytes(size))) for size in (16, 16, 16, 0))
        records += record(UART, frame(0x15, number))
    assert run(program, records).resets > 30
