from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_sync import messages
from cloud_sync.backoff import full_jitter_s, spread_s
from cloud_sync.budget import DailyBudget
from cloud_sync.flights import Flights, pack
from cloud_sync.topics import GatewayTopics, matches, parse_uplink
from edge_runtime.errors import InputError

DECODERS = [messages.decode_envelope, messages.decode_ack, messages.decode_status, messages.decode_state]
seqs = st.integers(0, 2**63 - 1)


class Batch(msgspec.Struct):
    boot: str
    first_seq: int
    count: int
    data: bytes


batches = st.builds(Batch, st.just("b0"), seqs, st.integers(1, 1000), st.binary(max_size=300))


@given(st.lists(batches, min_size=1, max_size=20))
def test_an_envelope_comes_back_as_it_was(sent: list[Batch]) -> None:
    envelope = messages.decode_envelope(messages.encode_envelope("b0", sent))
    assert [(b.first_seq, b.count, b.data, b.intact) for b in envelope.batches] == [(b.first_seq, b.count, b.data, True) for b in sent]


@given(st.binary(max_size=2000), st.sampled_from(DECODERS))
def test_any_bytes_decode_or_are_an_input_error(payload: bytes, decode) -> None:
    with contextlib.suppress(InputError):
        decode(payload)


@given(st.recursive(st.none() | st.integers() | st.text() | st.floats(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_any_json_or_msgpack_decodes_or_is_an_input_error(value: object) -> None:
    for decode in DECODERS:
        for encode in (msgspec.json.encode, msgspec.msgpack.encode):
            try:
                payload = encode(value)
            except (msgspec.MsgspecError, OverflowError, ValueError):
                continue
            with contextlib.suppress(InputError):
                decode(payload)


@given(batches, st.data())
def test_one_flipped_bit_in_a_batch_is_noticed(sent: Batch, data: st.DataObject) -> None:
    if not sent.data:
        return
    payload = bytearray(messages.encode_envelope("b0", [sent]))
    at = payload.rindex(sent.data) + data.draw(st.integers(0, len(sent.data) - 1))
    payload[at] ^= 1 << data.draw(st.integers(0, 7))
    assert not messages.decode_envelope(bytes(payload)).batches[0].intact


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        (b"[" * 100_000, "cannot be decoded"),
        (b'{"v":2,"boot":"b","batches":[]}', "version 2"),
        (b'{"v":1,"boot":"b/+","batches":[]}', "boot"),
        (b'{"v":1,"boot":"b","batches":[9223372036854775808]}', "batches"),
        (b'{"v":1,"boot":"b","batches":[' + b"1," * 2000 + b"1]}", "batches"),
        (b" " * 300_000, "over the limit"),
    ],
)
def test_a_hostile_acknowledgement_is_refused_by_name(payload: bytes, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        messages.decode_ack(payload)


def test_an_envelope_is_bounded_in_batches_and_numbers() -> None:
    for batch in ([2**63, 1, 0, b""], [0, 0, 0, b""], [0, 2**40, 0, b""], [-1, 1, 0, b""]):
        with pytest.raises(InputError):
            messages.decode_envelope(msgspec.msgpack.encode({"v": 1, "boot": "b", "batches": [batch]}))
    with pytest.raises(InputError):
        messages.decode_envelope(msgspec.msgpack.encode({"v": 1, "boot": "b", "batches": [[0, 1, 0, b""]] * 2000}))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 400)), max_size=60), st.integers(100, 1500))
def test_packing_keeps_order_boots_apart_and_the_size(rows: list[tuple[str, int]], limit: int) -> None:
    numbered = [(row_id, Batch(boot, row_id, 1, bytes(size))) for row_id, (boot, size) in enumerate(rows)]
    flights = list(pack(numbered, limit))
    assert [row for flight in flights for row in flight.rows.values()] == numbered
    for flight in flights:
        assert {batch.boot for _, batch in flight.rows.values()} == {flight.boot}
        assert len(flight.payload()) <= limit or len(flight.rows) == 1


def test_flights_settle_once_and_hand_back_the_rest() -> None:
    flights = Flights()
    first, second = pack([(7, Batch("a", 1, 1, b"x")), (8, Batch("a", 2, 1, b"y")), (9, Batch("b", 1, 1, b"z"))], 1000)
    flights.start(first)
    flights.start(second)
    assert flights.settle("a", [1, 1, 5]) == [1]
    assert flights.settle("c", [1]) == []
    assert not first.landed.is_set()
    assert flights.settle("b", [1]) == [1]
    assert second.landed.is_set()
    assert flights.abandon() == [8]
    assert len(flights) == 0
    assert flights.settle("a", [2]) == []


@given(st.integers(0, 5000), st.floats(0.01, 10), st.floats(0.01, 300), st.floats(0, 1, exclude_max=True))
def test_back_off_stays_below_its_ceiling(attempt: int, base_s: float, cap_s: float, draw: float) -> None:
    assert 0 <= full_jitter_s(attempt, base_s, cap_s, lambda: draw) <= min(cap_s, base_s * 2.0 ** min(attempt, 1000))


def test_back_off_doubles_its_ceiling_and_draws_from_zero() -> None:
    assert [full_jitter_s(n, 1, 60, lambda: 0.5) for n in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert full_jitter_s(5, 1, 60, lambda: 0.0) == 0
    assert [spread_s(900, 0.5, lambda d=d: d) for d in (0.0, 0.5, 1.0)] == [450, 900, 1350]


def test_a_budget_counts_the_last_24_hours() -> None:
    hour = 3600 * 10**9
    budget = DailyBudget(100)
    budget.spend(60, 0)
    assert not budget.exhausted(hour)
    budget.spend(40, 2 * hour)
    assert budget.exhausted(23 * hour)
    assert budget.reopens_in_s(23 * hour) == 3600
    assert not budget.exhausted(24 * hour)
    assert budget.spent(24 * hour) == 40
    assert not DailyBudget(0).exhausted(hour)


@given(st.lists(st.tuples(st.integers(0, 48), st.integers(0, 80)), max_size=40), st.integers(1, 200))
def test_an_exhausted_budget_reopens_when_it_says(spends: list[tuple[int, int]], limit: int) -> None:
    budget, now = DailyBudget(limit), 0
    for minutes, size in spends:
        now += minutes * 60 * 10**9
        budget.spend(size, now)
    wait_s = budget.reopens_in_s(now)
    assert (wait_s > 0) == budget.exhausted(now)
    assert not budget.exhausted(now + round(wait_s * 1e9) + 1)


def test_topics_are_those_of_the_contract() -> None:
    topics = GatewayTopics("acme", "pump-7")
    assert (topics.telemetry, topics.ack) == ("fl/v1/acme/g/pump-7/up/tlm", "fl/v1/acme/g/pump-7/dn/ack")
    origin = parse_uplink("fl/v1/acme/g/pump-7/up/rsp/c1")
    assert (origin.tenant, origin.gateway, origin.leaf) == ("acme", "pump-7", "rsp/c1")


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "a b", "-a", "a" * 65, "ü", "a\n"])
def test_a_name_that_could_be_a_wildcard_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="gateway"):
        GatewayTopics("acme", name)
    with pytest.raises(InputError):
        parse_uplink(f"fl/v1/acme/g/{name}/up/tlm")


@pytest.mark.parametrize(
    ("topic_filter", "topic", "selected"),
    [
        ("a/+/c", "a/b/c", True),
        ("a/+", "a/b/c", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("#", "$SYS/x", False),
        ("$share/g/a/+", "a/b", True),
        ("a/b", "a/b/", False),
        ("+", "", True),
    ],
)
def test_filters_select_as_the_standard_says(topic_filter: str, topic: str, selected: bool) -> None:
    assert matches(topic_filter, topic) is selected
