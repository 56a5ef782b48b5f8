"""Verifying does not hold up the gateway's event loop."""

from __future__ import annotations

import asyncio

from blockbuster import blockbuster_ctx


async def test_nothing_of_a_verification_blocks_the_loop(world) -> None:
    gateway, message = world.gateway(), world.sign(1)

    async def fetch(name: str) -> bytes:
        return await asyncio.to_thread(lambda: world.repository.blob(name).read_bytes())

    gateway.fetch = fetch
    with blockbuster_ctx():
        verified = await gateway.verify(message)
    assert verified.desired.revision == 1
