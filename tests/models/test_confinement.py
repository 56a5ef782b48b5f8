"""The child that tries a model is the first to go when memory runs out, whatever the gateway's own score is."""

from __future__ import annotations

import subprocess
import sys

CHILD = """
import msgspec, pathlib
from models.confinement import answer
class Score(msgspec.Struct):
    score: str
answer(lambda: Score(pathlib.Path("/proc/self/oom_score_adj").read_text()), path="x", deadline_s=10, memory_mb=64)
"""


def test_the_child_offers_itself_to_the_kernel() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=50, check=True)
    assert "1000" in done.stdout
