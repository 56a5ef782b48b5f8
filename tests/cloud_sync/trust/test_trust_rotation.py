"""Keys change hands: gateways follow every rotation, and recover from what stolen online keys had claimed."""

from __future__ import annotations

import pytest

from cloud_sync.controller.signing import KeyRing
from cloud_sync.trust import Verifier
from edge_runtime.errors import DeploymentReason as Reason
from edge_runtime.errors import InputError

ONLINE = ("director", "snapshot", "timestamp")


@pytest.mark.parametrize("roles", ["root", "targets", "snapshot", "timestamp", "director", ONLINE, (*ONLINE, "root", "targets")])
async def test_a_gateway_follows_the_rotation_of(world, roles) -> None:
    gateway = world.gateway()
    await gateway.verify(world.sign(1))
    before = {role: world.stolen(role).public_key.keyid for role in ("targets", *ONLINE)}
    world.repository.rotate(roles, world.repository.offline_keys)
    changed = {role for role, keyid in before.items() if world.stolen(role).public_key.keyid != keyid}
    assert changed == ({roles} if isinstance(roles, str) else set(roles)) - {"root"}
    revision = world.repository.next_revision(1)
    assert (await gateway.verify(world.sign(revision))).desired.revision == revision


async def test_a_gateway_that_was_away_follows_root_by_root(world) -> None:
    gateway = world.gateway()
    await gateway.verify(world.sign(1))
    for role in ("root", "timestamp", "root", "targets"):
        world.repository.rotate(role, world.repository.offline_keys)
    gateway.fetched.clear()
    await gateway.verify(world.sign(2))
    assert [name for name in gateway.fetched if "root" in name] == [f"tuf/{version}.root.json" for version in (2, 3, 4, 5, 6)]
    await world.gateway("press-8").verify(world.sign(1, gateway="press-8"))


async def test_a_gateway_that_joins_after_a_rotation_starts_from_the_newest_root(world) -> None:
    world.repository.rotate(("root", "targets"), world.repository.offline_keys)
    gateway = world.gateway()
    gateway.verifier = Verifier(gateway.trust_dir, "acme", "press-7", trust_root=world.repository.trust_root)
    await gateway.verify(world.sign(1))
    assert gateway.fetched[0] == "tuf/3.root.json"


async def test_old_root_keys_cannot_sign_the_next_root(world, forged, refused) -> None:
    gateway = world.gateway()
    root = world.served("1.root.json")
    ring = world.folder / "keys/offline"
    old = {path.name: path.read_bytes() for path in ring.glob("root-*.pem")}
    world.repository.rotate("root", ring)
    for name, text in old.items():
        (ring / name).write_bytes(text)
        (ring / name).chmod(0o600)
    signers = KeyRing(ring).need("root", root.signed.roles["root"].keyids, 3)

    def next_version(signed) -> None:
        signed.version = 3

    gateway.instead["tuf/3.root.json"] = forged(root, next_version, *signers)
    await refused(gateway, world.sign(), Reason.UNSIGNED)


async def test_a_revision_driven_to_the_top_by_a_stolen_director_key(world, refused) -> None:
    gateway, thief, honest = world.gateway(), world.stolen("director"), world.sign(2)
    await gateway.verify(world.sign(1))

    def jump(revision: int):
        def change(signed) -> None:
            signed.version = revision

        return world.forge(honest, change, thief)

    await refused(gateway, jump(2**63 - 1), Reason.MALFORMED, "rotate the director")
    await refused(gateway, jump(2**64), Reason.MALFORMED)
    assert (await gateway.verify(jump(10**9))).desired.revision == 10**9
    await refused(gateway, honest, Reason.OLD_REVISION)
    with pytest.raises(InputError, match="rotate its key"):
        world.repository.next_revision(10**9)

    world.repository.rotate("director", world.repository.offline_keys)
    assert world.repository.next_revision(7) == 10**9 + 1
    assert (await gateway.verify(world.sign(world.repository.next_revision(7)))).desired.revision == 10**9 + 1
    await refused(gateway, jump(10**9), Reason.UNSIGNED)


async def test_metadata_versions_driven_to_the_top_by_stolen_online_keys(world, forged, refused) -> None:
    gateway = world.gateway()
    await gateway.verify(world.sign(1))

    def snapshot_top(signed) -> None:
        signed.version = 2**63

    def timestamp_top(signed) -> None:
        signed.version = 2**63
        signed.snapshot_meta.version = 2**63
        signed.snapshot_meta.hashes = signed.snapshot_meta.length = None

    gateway.instead[f"tuf/{2**63}.snapshot.json"] = forged(world.served("2.snapshot.json"), snapshot_top, world.stolen("snapshot"))
    gateway.instead["tuf/timestamp.json"] = forged(world.served("timestamp.json"), timestamp_top, world.stolen("timestamp"))
    await gateway.verify(world.sign(2))
    gateway.instead.clear()
    await refused(gateway, world.sign(3), Reason.OLD_REVISION)

    world.repository.rotate(("snapshot", "timestamp"), world.repository.offline_keys)
    assert (await gateway.verify(world.sign(3))).desired.revision == 3


async def test_a_signed_time_in_the_far_future_from_a_stolen_timestamp_key(world, forged, refused) -> None:
    gateway = world.gateway()
    await gateway.verify(world.sign(1))

    def in_2100(signed) -> None:
        signed.version += 1
        signed.unrecognized_fields["edge_runtime"]["issued"] = 4_102_444_800 * 10**9

    gateway.instead["tuf/timestamp.json"] = forged(world.served("timestamp.json"), in_2100, world.stolen("timestamp"))
    await gateway.verify(world.sign(2))
    gateway.instead.clear()
    world.repository.refresh_timestamp()
    world.repository.refresh_timestamp()
    await refused(gateway, world.sign(3), Reason.EXPIRED, "2100")

    world.repository.rotate("timestamp", world.repository.offline_keys)
    verified = await gateway.verify(world.sign(3))
    assert verified.signed_wall_ns == world.wall.now_ns


async def test_a_rotation_without_the_offline_keys_changes_nothing(world) -> None:
    names = sorted(path.name for path in world.folder.rglob("*") if path.is_file())
    empty = world.tmp / "empty"
    empty.mkdir()
    for role in ("root", "targets", "snapshot", "timestamp", "director"):
        with pytest.raises(InputError, match=r"(root|targets)-[0-9a-f]{8}\.pem"):
            world.repository.rotate(role, empty)
    assert sorted(path.name for path in world.folder.rglob("*") if path.is_file()) == names
    assert (await world.gateway().verify(world.sign())).desired.revision == 1


async def test_two_of_three_root_keys_are_enough(world) -> None:
    lost = next(iter(sorted((world.folder / "keys/offline").glob("root-*.pem"))))
    lost.unlink()
    world.repository.rotate("root", world.repository.offline_keys)
    assert len(list((world.folder / "keys/offline").glob("root-*.pem"))) == 3
    await world.gateway().verify(world.sign())


def test_what_is_no_role_is_named(world) -> None:
    with pytest.raises(InputError, match="got mirrors"):
        world.repository.rotate("mirrors", world.repository.offline_keys)
