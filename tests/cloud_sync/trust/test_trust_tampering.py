"""Property: whatever is done to the bytes on the way, the gateway takes what was signed or nothing, and is not spoiled by it."""

from __future__ import annotations

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

_SETTINGS = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
_SECTIONS = ("message", "timestamp.json", "2.snapshot.json", "2.targets.json", "2.root.json")


@_SETTINGS
@given(data=st.data())
def test_a_flipped_bit_anywhere(world, child, data) -> None:
    if not (world.repository.metadata_dir / "2.root.json").exists():
        world.repository.rotate("timestamp", world.repository.offline_keys)
    message = world.sign(1)
    section = data.draw(st.sampled_from(_SECTIONS))
    honest = message if section == "message" else world.repository.blob(f"tuf/{_served(world, section)}").read_bytes()
    place = data.draw(st.integers(0, len(honest) * 8 - 1))
    flipped = bytearray(honest)
    flipped[place // 8] ^= 1 << place % 8
    fresh = world.tmp / "trust" / section / str(place)
    if section == "message":
        answer = child.ask(bytes(flipped), trust_dir=fresh)
    else:
        answer = child.ask(message, {f"tuf/{_served(world, section)}": bytes(flipped)}, trust_dir=fresh)
    if answer.desired is not None:
        _is_what_was_signed(child, answer, message)
    else:
        assert answer.refused, answer
    _is_what_was_signed(child, child.ask(message, trust_dir=fresh), message)


@_SETTINGS
@given(cut=st.integers(0, 10_000), extra=st.binary(max_size=30))
def test_a_message_cut_short_or_with_something_behind(world, child, cut, extra) -> None:
    message = world.sign(1)
    answer = child.ask(message[: cut % len(message)] + extra, trust_dir=world.tmp / "trust" / "cut")
    assert answer.refused == "malformed"


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@_SETTINGS
@given(data=st.data(), value=_json)
def test_any_value_put_in_any_place(world, child, data, value) -> None:
    message = world.sign(1)
    whole = json.loads(message)
    part, keys = whole, []
    while isinstance(part, dict | list) and part and (not keys or data.draw(st.booleans())):
        key = data.draw(st.sampled_from(sorted(part) if isinstance(part, dict) else range(len(part))))
        keys.append((part, key))
        part = part[key]
    holder, key = keys[-1]
    holder[key] = value
    answer = child.ask(json.dumps(whole).encode(), trust_dir=world.tmp / "trust" / "any")
    if answer.desired is not None:
        _is_what_was_signed(child, answer, message)
    else:
        assert answer.refused or answer.need, answer


def _served(world, section: str) -> str:
    """The newest file of the section's role."""
    role = section.split(".")[-2]
    if role == "timestamp":
        return section
    files = [path.name for path in world.repository.metadata_dir.glob(f"*.{role}.json")]
    return max(files, key=lambda name: int(name.split(".")[0]))


def _is_what_was_signed(child, answer, message: bytes) -> None:
    whole = json.loads(message)
    signed = whole["metadata"]["signed"]
    assert answer.desired is not None, answer
    assert answer.desired.revision == signed["version"]
    assert answer.desired.digest == f"sha256:{signed['targets']['deployment']['hashes']['sha256']}"
    assert child.document(answer) == whole["document"].encode()
    assert sorted(f"models/{digest.removeprefix('sha256:')}.tar" for digest in answer.desired.models) == sorted(
        set(signed["targets"]) - {"deployment"}
    )
