"""A model's way onto a node, as values: nothing is sent that cannot end well, and every answer leads somewhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.node.messages import ModelState, Source
from adapters.node.upload import Image, Phase, Upload, after_boot, after_data, check, image, move, next_chunk
from edge_runtime.errors import AdapterError, InputError
from models.export_c import factory

IMAGE = Image("model", 5, 1000, 100)


def running(source: Source, version: int, *, on_trial: bool) -> ModelState:
    return ModelState(name="m", version=version, source=source, on_trial=on_trial, boots_on_trial=1, seconds_left=9, inputs=1, outputs=1)


@given(st.integers(1, 20_000), st.integers(1, 1024))
def test_chunks_cover_the_blob_once_and_in_order(size: int, chunk: int) -> None:
    upload, sent = Upload(size, chunk), 0
    while (part := next_chunk(upload)) is not None:
        assert part[0] == sent
        assert 0 < part[1] - part[0] <= chunk
        sent = part[1]
        upload = after_data(upload, sent)
    assert sent == size


@given(st.integers(1, 5000), st.lists(st.integers(-100, 6000), max_size=200))
def test_an_upload_ends_whatever_the_node_answers(size: int, answers: list[int]) -> None:
    upload = Upload(size, 256)
    try:
        for there in answers:
            if next_chunk(upload) is None:
                break
            upload = after_data(upload, there)
            assert 0 <= upload.offset <= size
            assert upload.rewinds <= 8
    except AdapterError:
        pass


def test_an_exported_model_is_read_as_what_it_is() -> None:
    exported = factory.exported()
    found = image(exported.data)
    assert (found.name, found.version, found.size_bytes) == ("temperature", 1, len(exported.data))


@given(st.data())
def test_a_changed_or_cut_blob_is_refused_before_it_is_sent(data: st.DataObject) -> None:
    blob = bytearray(factory.exported().data)
    if data.draw(st.booleans()):
        blob[data.draw(st.integers(0, len(blob) - 33))] ^= data.draw(st.integers(1, 255))
    else:
        del blob[data.draw(st.integers(0, len(blob) - 1)) :]
    with pytest.raises(InputError):
        image(bytes(blob))


@given(st.binary(max_size=400))
def test_garbage_is_no_model(blob: bytes) -> None:
    with pytest.raises(InputError):
        image(blob)


@pytest.mark.parametrize(
    ("slot", "arena", "highest", "names"), [(999, 100, 4, "slot 999"), (1000, 99, 4, "RAM"), (1000, 100, 5, "--version 6")]
)
def test_what_the_node_will_refuse_is_told_before(slot: int, arena: int, highest: int, names: str) -> None:
    with pytest.raises(InputError, match=names):
        check(IMAGE, slot_bytes=slot, arena_bytes=arena, highest_confirmed=highest)
    check(IMAGE, slot_bytes=1000, arena_bytes=100, highest_confirmed=4)


def test_after_the_boot_the_node_tells_where_the_update_stands() -> None:
    assert after_boot(Phase.ON_TRIAL, IMAGE, running(Source.SLOT_A, 5, on_trial=True)) is Phase.ON_TRIAL
    assert after_boot(Phase.ON_TRIAL, IMAGE, running(Source.SLOT_A, 5, on_trial=False)) is Phase.CONFIRMED
    assert after_boot(Phase.ON_TRIAL, IMAGE, running(Source.FACTORY, 1, on_trial=False)) is Phase.ROLLED_BACK
    assert after_boot(Phase.ON_TRIAL, IMAGE, running(Source.SLOT_B, 4, on_trial=False)) is Phase.ROLLED_BACK


@pytest.mark.parametrize("end", [Phase.CONFIRMED, Phase.REFUSED, Phase.ROLLED_BACK])
def test_an_update_that_ended_goes_nowhere(end: Phase) -> None:
    for to in Phase:
        with pytest.raises(AdapterError, match="cannot become"):
            move(end, to)
