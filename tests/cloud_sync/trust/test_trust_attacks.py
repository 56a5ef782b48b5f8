"""Every attack on a pushed deployment, by its name: refused for the right reason, and the honest one still taken afterwards."""

from __future__ import annotations

import json

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import TargetFile

from edge_runtime.errors import DeploymentReason as Reason


async def test_unsigned(world, refused) -> None:
    gateway, honest = world.gateway(), world.sign()
    await refused(gateway, world.forge(honest, lambda signed: None), Reason.UNSIGNED)
    assert (await gateway.verify(honest)).desired.revision == 1


async def test_signed_with_a_key_that_nobody_trusts(world, refused) -> None:
    stranger = CryptoSigner.generate_ed25519()
    await refused(world.gateway(), world.forge(world.sign(), lambda signed: None, stranger), Reason.UNSIGNED)


async def test_signed_with_another_key_under_the_directors_id(world, refused) -> None:
    stranger, message = CryptoSigner.generate_ed25519(), json.loads(world.sign())
    forged = json.loads(world.forge(world.sign(), lambda signed: None, stranger))
    message["metadata"]["signatures"][0]["sig"] = forged["metadata"]["signatures"][0]["sig"]
    await refused(world.gateway(), json.dumps(message).encode(), Reason.UNSIGNED)


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
async def test_signed_with_the_key_of_another_role(world, refused, role) -> None:
    await refused(world.gateway(), world.forge(world.sign(), lambda signed: None, world.stolen(role)), Reason.UNSIGNED)


async def test_signed_by_another_controller(world, make_world, refused) -> None:
    other = make_world("elsewhere")
    await refused(world.gateway(), other.sign(), Reason.UNSIGNED)


async def test_metadata_of_another_controller(world, make_world, refused) -> None:
    other, gateway = make_world("elsewhere"), world.gateway()
    gateway.repository = other.repository
    await refused(gateway, other.sign(), Reason.UNSIGNED)


async def test_the_document_of_another_gateway(world, refused) -> None:
    await refused(world.gateway("press-7"), world.sign(gateway="press-8"), Reason.WRONG_GATEWAY, "acme/press-8")


async def test_the_document_of_another_tenant(world, refused) -> None:
    await refused(world.gateway(tenant="acme"), world.sign(tenant="ajax"), Reason.WRONG_GATEWAY, "ajax/press-7")


async def test_a_document_made_out_to_nobody(world, refused) -> None:
    message = world.forge(world.sign(), lambda signed: signed.unrecognized_fields.clear(), world.stolen("director"))
    await refused(world.gateway(), message, Reason.WRONG_GATEWAY)


async def test_an_older_revision_replayed(world, refused) -> None:
    gateway, old = world.gateway(), world.sign(1)
    await gateway.verify(world.sign(2))
    await refused(gateway, old, Reason.OLD_REVISION)


async def test_an_older_revision_replayed_to_a_gateway_that_lost_its_state(world, refused) -> None:
    gateway, old = world.gateway(), world.sign(1)
    await gateway.verify(world.sign(2))
    gateway.last_revision = 0
    await refused(gateway, old, Reason.OLD_REVISION)
    (gateway.trust_dir / "record.json").unlink()
    gateway.last_revision = 2
    await refused(gateway, old, Reason.OLD_REVISION)


async def test_the_same_revision_with_other_content(world, refused) -> None:
    gateway = world.gateway()
    await gateway.verify(world.sign(5, "a: 1\n"))
    await refused(gateway, world.sign(5, "a: 2\n"), Reason.OLD_REVISION, "another content")
    await gateway.verify(world.sign(6, "a: 2\n"))


async def test_another_document_under_the_signature(world, refused) -> None:
    message = json.loads(world.sign())
    message["document"] += "# more\n"
    await refused(world.gateway(), json.dumps(message).encode(), Reason.UNSIGNED)


async def test_another_document_as_a_blob(world, refused) -> None:
    gateway, message = world.gateway(), world.sign(1, "x: " + "y" * 70_000)
    name = next(f"documents/{found}" for found in [json.loads(message)["metadata"]["signed"]["targets"]["deployment"]["hashes"]["sha256"]])
    gateway.instead[name] = b"x: " + b"z" * 70_000
    await refused(gateway, message, Reason.UNSIGNED)


async def test_rollback_of_the_timestamp(world, refused) -> None:
    gateway = world.gateway()
    old = (world.repository.metadata_dir / "timestamp.json").read_bytes()
    world.repository.refresh_timestamp()
    await gateway.verify(world.sign(1))
    gateway.instead["tuf/timestamp.json"] = old
    await refused(gateway, world.sign(2), Reason.OLD_REVISION)


async def test_rollback_of_the_snapshot(world, forged, refused) -> None:
    gateway = world.gateway()
    old = world.served("timestamp.json").signed.snapshot_meta
    world.repository.renew("targets", world.repository.offline_keys)
    await gateway.verify(world.sign(1))

    def point_back(signed) -> None:
        signed.version += 10
        signed.snapshot_meta = old

    gateway.instead["tuf/timestamp.json"] = forged(world.served("timestamp.json"), point_back, world.stolen("timestamp"))
    await refused(gateway, world.sign(2), Reason.OLD_REVISION)


async def test_rollback_of_the_targets(world, forged, refused) -> None:
    gateway = world.gateway()
    world.repository.renew("targets", world.repository.offline_keys)
    await gateway.verify(world.sign(1))
    _serve_targets_version(world, gateway, forged, 1)
    await refused(gateway, world.sign(2), Reason.OLD_REVISION)


def _serve_targets_version(world, gateway, forged, version: int) -> None:
    """The work of who holds the snapshot and timestamp keys: a new snapshot that names another version of the targets."""
    current = world.served("timestamp.json").signed.snapshot_meta.version

    def snapshot_back(signed) -> None:
        signed.version = current + 1
        signed.meta["targets.json"].version = version
        signed.meta["targets.json"].hashes = signed.meta["targets.json"].length = None

    def timestamp_on(signed) -> None:
        signed.version += 1
        signed.snapshot_meta.version = current + 1
        signed.snapshot_meta.hashes = signed.snapshot_meta.length = None

    snapshot = forged(world.served(f"{current}.snapshot.json"), snapshot_back, world.stolen("snapshot"))
    gateway.instead[f"tuf/{current + 1}.snapshot.json"] = snapshot
    gateway.instead["tuf/timestamp.json"] = forged(world.served("timestamp.json"), timestamp_on, world.stolen("timestamp"))


async def test_freeze(world, refused) -> None:
    gateway = world.gateway()
    await gateway.verify(world.sign(1))
    world.wall.now_ns += 8 * 86_400 * 10**9
    await refused(gateway, world.sign(2), Reason.EXPIRED, "timestamp")
    world.repository.refresh_timestamp()
    await gateway.verify(world.sign(2))


async def test_mix_and_match_of_targets(world, refused) -> None:
    gateway, folder = world.gateway(), world.repository.metadata_dir
    old = (folder / "2.targets.json").read_bytes()
    world.repository.renew("targets", world.repository.offline_keys)
    gateway.instead["tuf/3.targets.json"] = old
    await refused(gateway, world.sign(1), Reason.UNSIGNED)


async def test_mix_and_match_of_snapshots(world, refused) -> None:
    gateway, folder = world.gateway(), world.repository.metadata_dir
    old = (folder / "2.snapshot.json").read_bytes()
    world.repository.renew("targets", world.repository.offline_keys)
    gateway.instead["tuf/3.snapshot.json"] = old
    await refused(gateway, world.sign(1), Reason.UNSIGNED)


@pytest.mark.parametrize("name", ["2.root.json", "timestamp.json", "2.snapshot.json", "2.targets.json"])
async def test_endless_data(world, refused, name) -> None:
    gateway = world.gateway()
    gateway.instead[f"tuf/{name}"] = b"{" + b" " * (5 * 1024 * 1024)
    await refused(gateway, world.sign(), Reason.MALFORMED, "at most")


async def test_more_data_than_the_parent_declared(world, refused) -> None:
    gateway = world.gateway()
    gateway.instead["tuf/2.targets.json"] = (world.repository.metadata_dir / "2.targets.json").read_bytes() + b" " * 1000
    await refused(gateway, world.sign(), Reason.MALFORMED)


async def test_a_model_that_was_not_signed_offline(world, refused) -> None:
    name = f"models/{'ab' * 32}.tar"

    def add(signed) -> None:
        signed.targets[name] = TargetFile(5, {"sha256": "cd" * 32}, name)

    await refused(world.gateway(), world.forge(world.sign(), add, world.stolen("director")), Reason.UNKNOWN_MODEL, name)


def test_a_model_that_is_not_the_one_signed_offline(world, child) -> None:
    thief = world.stolen("director")

    def swap(field: str, value: object):
        def change(signed) -> None:
            (file,) = (file for name, file in signed.targets.items() if name != "deployment")
            setattr(file, field, value)

        return world.forge(world.sign(), change, thief)

    for message in (swap("length", 3), swap("hashes", {"sha256": "cd" * 32}), swap("hashes", {"sha512": "cd" * 64})):
        assert child.ask(message).refused == Reason.UNKNOWN_MODEL
    assert child.ask(world.sign()).desired is not None


async def test_a_model_whose_approval_was_withdrawn(world, refused) -> None:
    gateway, message = world.gateway(), world.sign(1)
    world.repository.withdraw([world.model], world.repository.offline_keys)
    await refused(gateway, message, Reason.UNKNOWN_MODEL)


async def test_a_director_key_that_was_rotated_out(world, refused) -> None:
    gateway, old = world.gateway(), world.stolen("director")
    await gateway.verify(world.sign(1))
    world.repository.rotate("director", world.repository.offline_keys)
    revision = world.repository.next_revision(1)
    await refused(gateway, world.forge(world.sign(revision), lambda signed: None, old), Reason.UNSIGNED)
    assert (await gateway.verify(world.sign(revision))).desired.revision == revision


@pytest.mark.parametrize("signatures", [0, 1])
async def test_a_root_with_too_few_signatures(world, forged, refused, signatures) -> None:
    gateway, key = world.gateway(), world.stolen("root")

    def next_version(signed) -> None:
        signed.version += 1
        signed.roles["root"].threshold = 1

    gateway.instead["tuf/2.root.json"] = forged(world.served("1.root.json"), next_version, *[key] * signatures)
    await refused(gateway, world.sign(), Reason.UNSIGNED)
    gateway.instead.clear()
    await gateway.verify(world.sign())


async def test_a_root_that_skips_a_version(world, refused) -> None:
    gateway = world.gateway()
    world.repository.rotate("timestamp", world.repository.offline_keys)
    world.repository.rotate("timestamp", world.repository.offline_keys)
    gateway.instead["tuf/2.root.json"] = (world.repository.metadata_dir / "3.root.json").read_bytes()
    await refused(gateway, world.sign(), Reason.OLD_REVISION)


def test_json_that_is_very_deep(child) -> None:
    for depth in (1_000_000, 100_000, 1_500):
        for shape in ("%s", '{"v":1,"metadata":%s,"document":null}', '{"v":1,"metadata":{"signed":%s,"signatures":[]},"document":""}'):
            assert child.ask((shape % ("[" * depth + "]" * depth)).encode()).refused == Reason.MALFORMED


async def test_deep_json_as_metadata(world, refused) -> None:
    gateway = world.gateway()
    gateway.instead["tuf/timestamp.json"] = b"[" * 16_000
    await refused(gateway, world.sign(), Reason.MALFORMED)


async def test_a_message_of_ten_mebibytes(world, refused) -> None:
    gateway = world.gateway()
    await refused(gateway, b" " * 10 * 1024 * 1024, Reason.MALFORMED, "at most 262144")
    assert not gateway.trust_dir.exists()


def test_path_tricks_in_names(world, child) -> None:
    thief = world.stolen("director")
    for name in (
        "../../etc/passwd",
        "/etc/passwd",
        "models/../../x.tar",
        "models/AB.tar",
        f"models/{'a' * 64}.tar/..",
        "deployment/../x",
        "",
        "\0",
    ):
        file = TargetFile(5, {"sha256": "cd" * 32}, name)
        message = world.forge(world.sign(), lambda signed, name=name, file=file: signed.targets.update({name: file}), thief)
        assert child.ask(message).refused == Reason.MALFORMED, name
    assert child.ask(world.sign()).desired is not None


async def test_a_version_of_the_message_from_the_future(world, refused) -> None:
    message = json.loads(world.sign())
    await refused(world.gateway(), json.dumps({**message, "v": 2, "more": {}}).encode(), Reason.MALFORMED, "update")


def test_a_message_that_is_none(child) -> None:
    nones = [
        b"",
        b"{}",
        b"null",
        b'{"v":1}',
        b'{"v":1,"metadata":null,"document":null}',
        b"\xff\xfe",
        b'{"v":1e400}',
        b'{"v":NaN}',
        b"[" * 9,
    ]
    for message in nones:
        assert child.ask(message).refused == Reason.MALFORMED, message


async def test_metadata_of_another_kind_as_the_deployment(world, refused) -> None:
    timestamp = (world.repository.metadata_dir / "timestamp.json").read_text()
    await refused(world.gateway(), f'{{"v":1,"metadata":{timestamp},"document":""}}'.encode(), Reason.MALFORMED)


async def test_too_many_models(world, refused) -> None:
    def add(signed) -> None:
        for number in range(65):
            name = f"models/{number:064x}.tar"
            signed.targets[name] = TargetFile(5, {"sha256": "cd" * 32}, name)

    await refused(world.gateway(), world.forge(world.sign(), add, world.stolen("director")), Reason.MALFORMED, "at most 64")


async def test_a_document_that_declares_more_than_may_be(world, refused) -> None:
    def grow(signed) -> None:
        signed.targets["deployment"].length = 2**40

    await refused(world.gateway(), world.forge(world.sign(), grow, world.stolen("director")), Reason.MALFORMED)


async def test_a_controller_without_the_metadata(world, refused) -> None:
    gateway = world.gateway()
    gateway.instead["tuf/2.targets.json"] = FileNotFoundError("no such blob")
    await refused(gateway, world.sign(), Reason.MODEL_UNAVAILABLE, "2.targets.json")
    gateway.instead.clear()
    await gateway.verify(world.sign())
