"""The page on security names a test for every attack: each of them exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs/security.md"
_ROW = re.compile(r"^\| (?!attack|-)(.+?) \|.*\| (.+) \|$", re.MULTILINE)
_NAMED = re.compile(r"`([a-z0-9_/]+\.py)::(test_[a-z0-9_]+)`")


@cache
def names_in(path: Path) -> frozenset[str]:
    tree = ast.walk(ast.parse(path.read_text()))
    return frozenset(node.name for node in tree if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_attack_names_tests_that_exist() -> None:
    rows = [(attack, _NAMED.findall(tests)) for attack, tests in _ROW.findall(PAGE.read_text()) if not attack.startswith("---")]
    assert len(rows) > 40
    assert [attack for attack, named in rows if not named] == []
    missing = [f"{path}::{name}" for _, named in rows for path, name in named if name not in names_in(TESTS / path)]
    assert missing == []
