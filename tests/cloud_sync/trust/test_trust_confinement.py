"""The verifier's child dies, hangs, starves or finds a broken disk: the deployment is refused, the gateway lives, the next one is taken."""

from __future__ import annotations

import asyncio
import os
import signal

import psutil
import pytest

from cloud_sync.trust import Verifier
from edge_runtime.errors import DeploymentReason as Reason
from edge_runtime.errors import MissingDependency, StoreError, TransportError


def _children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "cloud_sync.trust.verify_process" in child.cmdline()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_the_child_is_killed(world, refused, number) -> None:
    gateway = world.gateway()
    honest = gateway.fetch

    async def kill_and_fetch(name: str) -> bytes:
        if name == "tuf/2.root.json":
            os.kill(_children()[0].pid, number)
        return await honest(name)

    gateway.fetch = kill_and_fetch
    await refused(gateway, world.sign(), Reason.MALFORMED, "the verifier broke")
    gateway.fetch = honest
    await gateway.verify(world.sign())
    assert not _children()


async def test_the_child_hangs(world, refused) -> None:
    pipe = world.tmp / "pipe"
    os.mkfifo(pipe)
    gateway = world.gateway(deadline_s=1.0)
    gateway.verifier = Verifier(gateway.trust_dir, "acme", "press-7", trust_root=pipe, deadline_s=1.0)
    await refused(gateway, world.sign(), Reason.DEADLINE)
    assert not _children()
    await world.gateway().verify(world.sign())


async def test_the_child_is_left_no_memory(world, refused) -> None:
    wide = b'{"v":1,"metadata":{"signed":[' + b"[]," * 80_000 + b'[]]},"document":""}'
    await refused(world.gateway(memory_mb=1), wide, Reason.MALFORMED, "memory")
    await refused(world.gateway(), wide, Reason.MALFORMED, "not understood")
    await world.gateway().verify(world.sign())


async def test_a_verification_that_is_cancelled_takes_its_child_along(world) -> None:
    gateway, reached = world.gateway(), asyncio.Event()

    async def never(name: str) -> bytes:
        reached.set()
        await asyncio.Event().wait()
        raise AssertionError

    gateway.fetch = never
    task = asyncio.create_task(gateway.verify(world.sign()))
    await asyncio.wait_for(reached.wait(), 30)
    assert len(_children()) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not _children()
    assert not list(gateway.trust_dir.glob("incoming-*"))


async def test_a_link_that_breaks_reaches_the_caller(world) -> None:
    gateway = world.gateway()
    gateway.instead["tuf/2.snapshot.json"] = TransportError("the link broke")
    with pytest.raises(TransportError, match="the link broke"):
        await gateway.verify(world.sign())
    gateway.instead.clear()
    await gateway.verify(world.sign())


async def test_two_messages_at_once_are_judged_one_after_the_other(world) -> None:
    gateway = world.gateway()
    first, second = await asyncio.gather(gateway.verify(world.sign(1)), gateway.verify(world.sign(2)))
    assert (first.desired.revision, second.desired.revision) == (1, 2)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"revision": "x"}', b"\x00" * 4096])
async def test_files_of_the_trust_folder_that_a_power_cut_damaged(world, damage) -> None:
    gateway = world.gateway()
    await gateway.verify(world.sign(1))
    for path in gateway.trust_dir.rglob("*.json"):
        if not path.is_symlink():
            path.write_bytes(damage)
    assert (await gateway.verify(world.sign(2))).desired.revision == 2


async def test_leftovers_of_a_killed_verification_are_cleared_away(world) -> None:
    gateway = world.gateway()
    await gateway.verify(world.sign(1))
    (gateway.trust_dir / "incoming-dead").mkdir()
    (gateway.trust_dir / "incoming-dead" / "message").write_bytes(b"x")
    (gateway.trust_dir / "metadata" / "tmpdead").write_bytes(b"x")
    await gateway.verify(world.sign(2))
    assert not [path for path in gateway.trust_dir.rglob("*") if "dead" in path.name]


async def test_a_trust_root_that_is_missing(world) -> None:
    gateway = world.gateway()
    gateway.verifier = Verifier(gateway.trust_dir, "acme", "press-7", trust_root=world.tmp / "none.json")
    with pytest.raises(StoreError, match=r"none\.json"):
        await gateway.verify(world.sign())


async def test_a_trust_folder_that_cannot_be_made(world) -> None:
    gateway = world.gateway()
    gateway.trust_dir.parent.mkdir(parents=True)
    gateway.trust_dir.write_text("a file in the way")
    with pytest.raises(StoreError, match="press-7"):
        await gateway.verifier.verify(world.sign(), 0, world.wall.now_ns, gateway.fetch)


async def test_a_missing_library_is_named_with_its_install_command(world, monkeypatch) -> None:
    stub = world.tmp / "stub" / "tuf"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'tuf'\", name='tuf')\n")
    monkeypatch.setenv("PYTHONPATH", str(stub.parent))
    with pytest.raises(MissingDependency, match=r"edge-runtime\[sync\]"):
        await world.gateway().verify(world.sign())
