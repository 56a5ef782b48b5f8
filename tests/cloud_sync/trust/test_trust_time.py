"""Expiry and wrong clocks: what is expired blocks updates, by that name, and nothing is remembered of a wrong clock."""

from __future__ import annotations

import pytest

from edge_runtime.clock import BUILD_WALL_NS
from edge_runtime.errors import DeploymentReason as Reason

DAY_NS = 86_400 * 10**9
IN_1970_NS = 1_000 * 10**9
IN_2100_NS = 4_102_444_800 * 10**9


async def test_a_clock_at_1970_is_no_obstacle(world) -> None:
    gateway = world.gateway()
    assert (await gateway.verify(world.sign(1), IN_1970_NS)).desired.revision == 1


async def test_a_clock_at_1970_does_not_bring_back_what_had_expired(world, refused) -> None:
    gateway = world.gateway()
    world.wall.now_ns += 10 * DAY_NS
    world.repository.refresh_timestamp()
    short = world.sign(1, expires_s=86_400)
    world.wall.now_ns += 3 * DAY_NS
    world.repository.refresh_timestamp()
    await gateway.verify(world.sign(1), IN_1970_NS)
    await refused(gateway, short, Reason.EXPIRED, now_wall_ns=IN_1970_NS)


async def test_a_clock_before_the_build_counts_as_the_build(world, refused) -> None:
    world.wall.now_ns = BUILD_WALL_NS - 40 * DAY_NS
    message = world.sign(1, expires_s=30 * 86_400)
    await refused(world.gateway(), message, Reason.EXPIRED, now_wall_ns=IN_1970_NS)


async def test_a_clock_at_2100_blocks_updates_by_name_and_leaves_no_trace(world, refused) -> None:
    gateway = world.gateway()
    await gateway.verify(world.sign(1))
    kept = (gateway.trust_dir / "record.json").read_bytes()
    told = await refused(gateway, world.sign(2), Reason.EXPIRED, "check this gateway's clock", IN_2100_NS)
    assert "2100-01-01" in told
    assert (gateway.trust_dir / "record.json").read_bytes() == kept
    assert (await gateway.verify(world.sign(2))).desired.revision == 2


async def test_a_clock_at_2100_on_the_first_start(world, refused) -> None:
    gateway = world.gateway()
    await refused(gateway, world.sign(1), Reason.EXPIRED, now_wall_ns=IN_2100_NS)
    assert (await gateway.verify(world.sign(1))).desired.revision == 1


async def test_an_expired_deployment(world, refused) -> None:
    gateway, message = world.gateway(), world.sign(1, expires_s=3600)
    world.wall.now_ns += 2 * 3600 * 10**9
    await refused(gateway, message, Reason.EXPIRED, "revision 1 was good until")


@pytest.mark.parametrize(("role", "days"), [("timestamp", 8), ("targets", 366), ("root", 731)])
async def test_expired_metadata_of(world, refused, role, days) -> None:
    gateway = world.gateway()
    await gateway.verify(world.sign(1))
    world.wall.now_ns += days * DAY_NS
    if role != "timestamp":
        world.repository.refresh_timestamp()
    if role == "root":
        world.repository.renew("targets", world.repository.offline_keys)
    await refused(gateway, world.sign(2), Reason.EXPIRED, role)
    if role == "timestamp":
        world.repository.refresh_timestamp()
    else:
        world.repository.renew("targets", world.repository.offline_keys)
        world.repository.renew("root", world.repository.offline_keys)
    assert (await gateway.verify(world.sign(2))).desired.revision == 2


async def test_ninety_days_away(world) -> None:
    gateway = world.gateway()
    await gateway.verify(world.sign(1))
    for _ in range(18):
        world.wall.now_ns += 5 * DAY_NS
        world.repository.refresh_timestamp()
    verified = await gateway.verify(world.sign(2), IN_1970_NS)
    assert verified.signed_wall_ns == world.wall.now_ns


async def test_the_largest_time_that_a_clock_can_tell(world, refused) -> None:
    await refused(world.gateway(), world.sign(), Reason.EXPIRED, now_wall_ns=2**63 - 1)
