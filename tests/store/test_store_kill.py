"""SIGKILL at random moments under load: what was said to be durable is there, once, and every hole has its reason."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.records import decode_batch
from edge_runtime.store import Store, read_drops, read_ledger

CHILD = Path(__file__).with_name("offering_child.py")
KILLS = 25


class Storm:
    """What the killed processes said before they died."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.chance = random.Random(7)
        self.durable: dict[str, int] = {}
        self.delivered: set[tuple[str, int]] = set()

    def kill_one(self, deliver: bool, lines: int) -> None:
        mode = "deliver" if deliver else "offer"
        command = [sys.executable, str(CHILD), str(self._directory), mode]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for _ in range(lines):
                self._note(child.stdout.readline())
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(self.chance.uniform(0, 0.02))
            child.kill()
            for line in child.stdout:  # what it printed before it died
                self._note(line)

    def _note(self, line: str) -> None:
        if not line.endswith("\n"):
            return
        word, *rest = line.split()
        if word == "ack":
            self.delivered |= {(rest[0], int(seq)) for seq in rest[1:]}
        else:
            self.durable[word] = int(rest[0])


@pytest.mark.slow
async def test_a_kill_storm_loses_nothing_durable_and_doubles_nothing(open_store: Any, tmp_path: Path) -> None:
    storm = Storm(tmp_path / "store")
    for n in range(KILLS):
        storm.kill_one(deliver=n % 2 == 1, lines=storm.chance.randrange(1, 15))
        ledger = read_ledger(tmp_path / "store")
        assert ledger.balanced, ledger
    explained = {(run.boot, seq) for run in read_drops(tmp_path / "store") for seq in range(run.first_seq, run.last_seq + 1)}
    delivered_before = read_ledger(tmp_path / "store").delivered
    pending = await everything(open_store())
    assert len(pending) == len(set(pending)) > 0
    kept = set(pending)
    assert not kept & explained
    assert not kept & storm.delivered
    numbers: dict[str, set[int]] = defaultdict(set)
    for boot, seq in kept | explained:
        numbers[boot].add(seq)
    for boot, seq in storm.delivered:
        numbers[boot].add(seq)
    missing = sum(max(numbers[boot] | {storm.durable.get(boot, 0)}) - len(numbers[boot]) for boot in numbers.keys() | storm.durable.keys())
    unsaid = delivered_before - len(storm.delivered)
    assert missing <= unsaid, "a durable record is neither pending, nor explained, nor acknowledged before its process could say so"
    assert read_ledger(tmp_path / "store").balanced


async def everything(store: Store) -> list[tuple[str, int]]:
    seen: list[tuple[str, int]] = []
    while batches := await store.outbox.peek(50):
        for _, batch in batches:
            seen += [(batch.boot, record.seq) for record in decode_batch(batch.data)]
            await store.outbox.acknowledge(batch.boot, [batch.first_seq])
    return seen
