"""Model updates on the node, whole and under faults: whatever is cut off or damaged, a model runs."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable

import pytest

from adapters.firmware.build import provision_page
from adapters.firmware.emulator import Emulator
from models.export_c.blob import sign
from tests.adapters.firmware.conftest import MakeBlob
from tests.adapters.firmware.uart import Uart, frame

pytestmark = pytest.mark.system

OK, CORRUPT, SIGNATURE, TOO_LARGE, DOWNGRADE, STATE, OFFSET, MALFORMED = 0, -2, -3, -4, -5, -6, -7, -8
NOT_CONFIRMED, TOO_MANY_BOOTS, ASKED = 1, 2, 3
FACTORY, SLOT_A, SLOT_B = 0, 1, 2
CHUNK = 512


def begin(uart: Uart, blob: bytes, version: int) -> int:
    return uart.ask(0x10, struct.pack("<III", len(blob), zlib.crc32(blob), version)).status


def upload(uart: Uart, blob: bytes, version: int) -> None:
    """Begin and data; no commit."""
    assert begin(uart, blob, version) == OK
    for offset in range(0, len(blob), CHUNK):
        following = uart.ok(0x11, struct.pack("<I", offset) + blob[offset : offset + CHUNK])
        assert struct.unpack("<I", following) == (min(offset + CHUNK, len(blob)),)


def commit(uart: Uart) -> int:
    return uart.ask(0x12).status


def trial(uart: Uart, confirm_s: int = 3600) -> None:
    assert uart.restart(0x13, struct.pack("<H", confirm_s))[0] == 1


def model(uart: Uart) -> tuple[int, int, int]:
    """Source, on trial, version of the model that runs, and that it does run."""
    answer = uart.ok(0x03)
    result = uart.ok(0x06, bytes([20] * 16))
    assert result[0] == answer[0]
    assert len(result) == 11
    return answer[0], answer[1], struct.unpack_from("<I", answer, 4)[0]


def install(uart: Uart, blob: bytes, version: int) -> None:
    upload(uart, blob, version)
    assert commit(uart) == OK
    trial(uart)
    assert uart.ask(0x14).status == OK


def test_a_model_is_tried_confirmed_and_outlives_a_reset_but_no_power_cut(node: Emulator, uart: Uart, blob: MakeBlob) -> None:
    upload(uart, blob(2), 2)
    assert uart.ok(0x12) == bytes([SLOT_A])
    assert uart.ok(0x12) == bytes([SLOT_A]), "a repeated commit is the same commit"
    assert model(uart) == (FACTORY, 0, 1)
    trial(uart)
    assert model(uart) == (SLOT_A, 1, 2)
    assert begin(uart, blob(3), 3) == STATE, "one trial at a time"
    assert uart.ask(0x14).status == OK
    assert uart.ask(0x14).status == OK, "a repeated confirm is the same confirm"
    uart.restart(0x0A, b"\0")
    assert model(uart) == (SLOT_A, 0, 2)
    install(uart, blob(3), 3)
    assert model(uart) == (SLOT_B, 0, 3)
    assert struct.unpack_from("<I", uart.ok(0x02), 68) == (3,)
    node.power_cycle()
    uart.connect()
    assert model(uart) == (FACTORY, 0, 1)
    install(uart, blob(2), 2)
    assert model(uart) == (SLOT_A, 0, 2)


def test_the_third_boot_without_a_confirm_takes_the_model_back(node: Emulator, uart: Uart, blob: MakeBlob) -> None:
    upload(uart, blob(5), 5)
    assert commit(uart) == OK
    trial(uart)
    assert uart.ok(0x03)[62] == 1
    node.reset()
    uart.notice(1)
    assert model(uart) == (SLOT_A, 1, 5)
    node.reset()
    assert uart.notice(3) == (FACTORY, TOO_MANY_BOOTS)
    assert model(uart) == (FACTORY, 0, 1)
    assert begin(uart, blob(2), 2) == OK, "what was never confirmed bars nothing"


def test_a_model_on_trial_that_hangs_ends_where_it_began(fast_uart: Uart, blob: MakeBlob) -> None:
    """Each watchdog reset costs it a boot."""
    upload(fast_uart, blob(5), 5)
    assert commit(fast_uart) == OK
    trial(fast_uart)
    for _ in range(2):
        assert fast_uart.restart(0x0A, b"\1")[0] == 2
    assert model(fast_uart) == (FACTORY, 0, 1)


def test_a_model_that_nobody_confirms_in_time_is_taken_back(node: Emulator, uart: Uart, blob: MakeBlob) -> None:
    upload(uart, blob(2), 2)
    assert commit(uart) == OK
    trial(uart, confirm_s=1)
    assert uart.notice(3) == (FACTORY, NOT_CONFIRMED)
    assert model(uart) == (FACTORY, 0, 1)
    assert uart.ask(0x14).status == STATE


def test_a_rollback_goes_back_one_step_and_its_repetition_no_further(uart: Uart, blob: MakeBlob) -> None:
    install(uart, blob(2), 2)
    upload(uart, blob(3), 3)
    assert commit(uart) == OK
    trial(uart)
    assert uart.ask(0x15, seq=777) == (OK, bytes([SLOT_A]))
    assert uart.ask(0x15, seq=777) == (OK, bytes([SLOT_A])), "the same request again"
    assert model(uart) == (SLOT_A, 0, 2)
    assert uart.ask(0x15) == (OK, bytes([FACTORY]))
    assert uart.ask(0x15).status == STATE
    assert model(uart) == (FACTORY, 0, 1)
    assert begin(uart, blob(2), 2) == DOWNGRADE, "version 2 was confirmed once"


def test_steps_out_of_order_are_refused_and_change_nothing(uart: Uart, blob: MakeBlob) -> None:
    image = blob(2)
    assert uart.ask(0x11, struct.pack("<I", 0) + b"x").status == STATE
    assert [uart.ask(type_).status for type_ in (0x12, 0x14, 0x15)] == [STATE] * 3
    assert uart.ask(0x13, struct.pack("<H", 10)).status == STATE
    assert [uart.ask(0x13, struct.pack("<H", s)).status for s in (0, 3601)] == [MALFORMED] * 2
    assert begin(uart, image, 1) == DOWNGRADE
    assert uart.ask(0x10, struct.pack("<III", 12289, 0, 2)).status == TOO_LARGE
    assert begin(uart, image, 2) == OK
    assert uart.ask(0x11, struct.pack("<I", 0) + bytes(1025)).status == MALFORMED
    assert uart.ok(0x11, struct.pack("<I", 0) + image[:100]) == struct.pack("<I", 100)
    assert uart.ok(0x11, struct.pack("<I", 0) + image[:100]) == struct.pack("<I", 100), "its reply was lost"
    status, _ = uart.ask(0x11, struct.pack("<I", 200) + image[200:300])
    assert status == OFFSET
    assert uart.ask(0x11, struct.pack("<I", 0xFFFFFFFF) + b"xx").status == OFFSET
    assert commit(uart) == STATE, "not all of it is there"
    assert uart.ask(0x11, struct.pack("<I", 100) + image[100:1000] + bytes(124)).status == OK
    assert begin(uart, image, 2) == OK, "begin starts over"
    upload(uart, image, 2)
    assert uart.ask(0x11, struct.pack("<I", len(image)) + b"x").status == TOO_LARGE
    assert commit(uart) == OK
    assert model(uart) == (FACTORY, 0, 1)


def refit(image: bytes, change: Callable[[bytearray], None]) -> bytes:
    """The image with a change, its CRC and signature right again."""
    content = bytearray(image[:-36])
    change(content)
    return sign(bytes(content), bytes(range(32)))


def test_every_kind_of_wrong_model_is_named_and_never_runs(uart: Uart, blob: MakeBlob) -> None:
    image = blob(2)

    def patched(offset: int, layout: str, value: int) -> bytes:
        return refit(image, lambda content: struct.pack_into(layout, content, offset, value))

    for wrong, status in (
        (blob(2, key=bytes(32)), SIGNATURE),
        (image[:-1] + bytes([image[-1] ^ 1]), SIGNATURE),
        (patched(12, "<I", 1), DOWNGRADE),
        (patched(16, "<I", 1 << 20), TOO_LARGE),
        (patched(0, "<I", 0), CORRUPT),
        (patched(4, "<H", 2), -10),
        (patched(96, "<B", 99), -10),
        (patched(96 + 32, "<I", 0x7FFFFFF0), CORRUPT),
        (patched(96 + 44, "<I", 0xFFFFFFF0), CORRUPT),
    ):
        upload(uart, wrong, 2)
        assert commit(uart) == status
        assert uart.ask(0x13, struct.pack("<H", 10)).status == STATE
    assert model(uart) == (FACTORY, 0, 1)


def test_a_flipped_bit_anywhere_is_found(uart: Uart, blob: MakeBlob) -> None:
    image = blob(2)
    choice = random.Random(4)
    for _ in range(60):
        at = choice.randrange(len(image))
        wrong = bytearray(image)
        wrong[at] ^= 1 << choice.randrange(8)
        assert uart.ask(0x10, struct.pack("<III", len(wrong), zlib.crc32(wrong), 2)).status == OK
        for offset in range(0, len(wrong), 1024):
            uart.ok(0x11, struct.pack("<I", offset) + wrong[offset : offset + 1024])
        assert commit(uart) == (SIGNATURE if at >= len(image) - 32 else CORRUPT)
    upload(uart, image, 2)
    assert commit(uart) == OK
    assert model(uart) == (FACTORY, 0, 1)


def test_bytes_lost_on_the_way_are_found_by_the_checksum_of_begin(uart: Uart, blob: MakeBlob) -> None:
    image = blob(2)
    assert uart.ask(0x10, struct.pack("<III", len(image), zlib.crc32(image) ^ 1, 2)).status == OK
    for offset in range(0, len(image), CHUNK):
        uart.ok(0x11, struct.pack("<I", offset) + image[offset : offset + CHUNK])
    assert commit(uart) == CORRUPT


@pytest.mark.parametrize("fault", ["cut link", "reset", "power cut"])
def test_a_fault_at_every_step_leaves_a_model_that_runs_and_an_update_that_passes(
    node: Emulator, uart: Uart, blob: MakeBlob, fault: str
) -> None:
    """The fault comes right behind the request, its reply is not waited for."""
    image, version = blob(2), 2
    chunks = [struct.pack("<I", at) + image[at : at + CHUNK] for at in range(0, len(image), CHUNK)]
    steps = [(0x10, struct.pack("<III", len(image), zlib.crc32(image), version)), *((0x11, chunk) for chunk in chunks)]
    steps += [(0x12, b""), (0x13, struct.pack("<H", 3600)), (0x14, b"")]
    for last in range(len(steps)):
        for type_, payload in steps[:last]:
            uart.ok(type_, payload)
            if type_ == 0x13:
                uart.notice(1)
        cut = frame(steps[last][0], 5, steps[last][1])
        uart.send(cut if last % 2 else cut[: len(cut) // 2])
        if fault == "reset":
            node.reset()
            uart.connect()
        elif fault == "power cut":
            node.power_cycle()
            uart.connect()
        else:
            uart.connect()
        source, _, running = model(uart)
        assert (source == FACTORY) == (running == 1)
        if fault != "power cut" and running != 1:
            node.power_cycle()
            uart.connect()
    install(uart, image, version)
    assert model(uart)[2] == version


def test_a_provisioned_node_takes_models_of_its_own_key_only(firmware: object, blob: MakeBlob) -> None:
    key = random.Random(1).randbytes(32)
    page = provision_page(node_id=7, key=key, mac="02:00:00:00:00:07", address="192.168.7.20/24")
    with Emulator(provision=page) as node:
        uart = Uart(node.serial_port)
        hello = uart.ok(0x02)
        assert struct.unpack_from("<I", hello, 20) == (7,)
        assert not struct.unpack_from("<I", hello, 28)[0] & 128
        upload(uart, blob(2), 2)
        assert commit(uart) == SIGNATURE
        install(uart, blob(2, key=key), 2)
        assert model(uart) == (SLOT_A, 0, 2)
        uart.close()


def test_a_damaged_provision_page_counts_as_none(firmware: object) -> None:
    page = bytearray(provision_page(node_id=7, key=bytes(32), mac="02:00:00:00:00:07", address="192.168.7.20/24"))
    page[20] ^= 1
    with Emulator(provision=bytes(page)) as node:
        uart = Uart(node.serial_port)
        assert struct.unpack_from("<I", uart.ok(0x02), 28)[0] & 128
        uart.close()
