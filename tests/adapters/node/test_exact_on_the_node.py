"""Over the wire: random networks pushed onto the emulated node give, inference by inference, the bits of onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from adapters.coap import open_node as open_coap
from adapters.firmware.emulator import Emulator
from adapters.microcontroller import open_node as open_serial
from adapters.node.messages import NodeReading, Notice, Result
from adapters.node.push import push
from models.export_c.export import Exported, export
from tests.models.export_c.onnx_networks import RandomNetwork
from tests.models.export_c.test_exact_onnx import session

NETWORKS = 6
ROWS = 40
SLOT_BYTES, ARENA_BYTES = 12_288, 5_632


class Deaf:
    def on_reading(self, reading: NodeReading) -> None: ...

    def on_result(self, result: Result) -> None: ...

    def on_notice(self, notice: Notice) -> None: ...

    def on_lost(self, reason: str) -> None: ...


def fitting(folder: Path) -> list[tuple[int, RandomNetwork, Path, Exported]]:
    """Networks that a slot and its arena hold, with the versions that they are pushed as."""

    def all_of_them() -> Iterator[tuple[int, RandomNetwork, Path, Exported]]:
        for seed in range(1000):
            network, path = RandomNetwork(seed, unsigned=bool(seed % 2)), folder / f"{seed}.onnx"
            exported = export(network.save(path), version=seed + 2)
            if len(exported.data) <= SLOT_BYTES and exported.report.arena_bytes <= ARENA_BYTES:
                yield seed + 2, network, path, exported

    return list(islice(all_of_them(), NETWORKS))


@pytest.mark.slow
@pytest.mark.parametrize("link", ["uart", "coap"])
async def test_inferences_on_the_node_are_those_of_onnxruntime(link: str, board: Emulator, tmp_path: Path) -> None:
    node = open_serial(board.serial_url, 115_200) if link == "uart" else open_coap(f"coap://127.0.0.1:{board.coap_port}")
    await node.open(Deaf())
    outputs = 0
    try:
        for version, network, path, exported in fitting(tmp_path):
            outcome = await push(node, exported.data, progress=lambda done, total: None)
            assert outcome.running.version == version
            given = network.inputs(ROWS)
            expected = session(path).run(None, {"x": given})[0].reshape(ROWS, -1)
            for row, wanted in zip(given, expected, strict=True):
                got = (await node.infer(row.tobytes())).outputs
                assert bytes(got) == wanted.astype(np.int8 if wanted.dtype == np.int64 else wanted.dtype).tobytes()
                outputs += wanted.size
    finally:
        await node.close()
    assert outputs >= NETWORKS * ROWS
