"""A process that offers records until it is killed: prints a line when they are durable. Not a test; run by the kill storm.

Each line is `<boot> <highest sequence number known durable>`. Odd runs also deliver what they find, and print `ack <boot> <seq> ...`
once the acknowledgement is durable.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from pathlib import Path

from edge_runtime.clock import SystemClock
from edge_runtime.records import RecordKind, decode_batch
from edge_runtime.store import Store
from edge_runtime.types import Priority


async def main(directory: Path, deliver: bool) -> None:
    clock = SystemClock()
    store = Store.open(directory, clock=clock, max_bytes=8 * 1024 * 1024)
    for n in itertools.count():
        for _ in range(50):
            seq = store.offer(RecordKind.READING, clock.now(), {"n": n}, Priority(n % 3), urgent=n % 7 == 0)
        if n % 5 == 0:
            store.offer(RecordKind.READING, clock.now(), {"pad": "x" * 300_000}, Priority.BULK)
        store.count_drop("rate_limit")
        await store.flush()
        say(store.boot, seq)
        if deliver:
            await deliver_some(store)


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def deliver_some(store: Store) -> None:
    for _, batch in await store.outbox.peek(2):
        seqs = [record.seq for record in decode_batch(batch.data)]
        await store.outbox.acknowledge(batch.boot, [batch.first_seq])
        say("ack", batch.boot, *seqs)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2] == "deliver"))
