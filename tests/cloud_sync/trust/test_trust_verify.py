"""A deployment that was honestly signed reaches the gateway, and costs it little."""

from __future__ import annotations

import hashlib
import subprocess
import sys

from cloud_sync.controller.signing import Repository
from cloud_sync.trust import blob_limit


async def test_a_signed_deployment_is_verified_with_what_it_needs(world) -> None:
    gateway = world.gateway()
    verified = await gateway.verify(world.sign(3, "schema: 1\n"))
    desired = verified.desired
    assert (desired.revision, desired.document, desired.models) == (3, b"schema: 1\n", (world.model,))
    assert desired.digest == "sha256:" + hashlib.sha256(b"schema: 1\n").hexdigest()
    assert desired.expires_wall_ns == (world.wall.now_ns // 10**9 + 86_400 * 90) * 10**9
    (artifact,) = verified.artifacts
    data = world.repository.artifact(artifact.name).read_bytes()
    assert (artifact.digest, artifact.size_bytes) == (world.model, len(data))
    assert artifact.sha256 == hashlib.sha256(data).hexdigest()
    assert artifact.blocks == (artifact.sha256,)
    assert verified.signed_wall_ns == world.wall.now_ns


async def test_the_second_time_only_the_next_root_and_the_timestamp_are_asked(world) -> None:
    gateway = world.gateway()
    await gateway.verify(world.sign(1))
    assert gateway.fetched == ["tuf/2.root.json", "tuf/timestamp.json", "tuf/2.snapshot.json", "tuf/2.targets.json"]
    gateway.fetched.clear()
    await gateway.verify(world.sign(2))
    assert gateway.fetched == ["tuf/2.root.json", "tuf/timestamp.json"]


async def test_the_same_message_again_is_taken_again(world) -> None:
    gateway, message = world.gateway(), world.sign(4)
    assert (await gateway.verify(message)).desired == (await gateway.verify(message)).desired


async def test_a_large_document_comes_as_a_blob(world) -> None:
    gateway, text = world.gateway(), "x: " + "y" * 300_000
    message = world.sign(1, text)
    assert len(message) < 4096
    name = "documents/" + hashlib.sha256(text.encode()).hexdigest()
    gateway.documents[name] = text.encode()
    assert (await gateway.verify(message)).desired.document == text.encode()
    assert len(text) <= blob_limit(name)


async def test_it_goes_on_after_a_restart_of_both_sides(world) -> None:
    await world.gateway().verify(world.sign(1))
    world.repository = Repository.open(world.folder, clock=world.wall)
    world.repository.refresh_timestamp()
    gateway = world.gateway()
    assert (await gateway.verify(world.sign(2))).desired.revision == 2


def test_importing_the_gateways_side_loads_no_cryptography() -> None:
    code = "import sys, cloud_sync.trust; print([m for m in ('tuf', 'securesystemslib', 'cryptography') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "[]"
