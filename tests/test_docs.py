"""The documentation keeps its word: links lead somewhere, documents in it are valid, commands in it exist."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import yaml

from edge_runtime.cli.main import main
from edge_runtime.config.deployment import Deployment
from edge_runtime.config.gateway import GatewayFile
from edge_runtime.config.load import parse_deployment, parse_gateway
from edge_runtime.registry import COMMANDS, load, names

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_GATEWAY_KEYS = {field.name for field in msgspec.structs.fields(GatewayFile)}
_DEPLOYMENT_KEYS = {field.name for field in msgspec.structs.fields(Deployment)}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_link_leads_to_a_file(page: Path) -> None:
    for target in _LINK.findall(page.read_text()):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_document_is_valid(page: Path) -> None:
    for text in _documents(page):
        keys = set(yaml.safe_load(text))
        if "gateway" in keys or "adapters" in keys:
            _whole(text, keys, _GATEWAY_KEYS)
            parse_gateway(_filled(text, keys, gateway="{id: gw-1}").encode(), str(page))
        elif keys <= _DEPLOYMENT_KEYS:
            parse_deployment(_filled(text, keys).encode(), str(page))


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_command_exists_with_its_options(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in _commands(page):
        command, *arguments = shlex.split(line, comments=True)
        assert command in names(COMMANDS), line
        parser = argparse.ArgumentParser()
        load(COMMANDS, command)().configure(parser)
        known = set(parser._option_string_actions)
        if parser._subparsers is None:
            assert {word for word in arguments if re.fullmatch(r"--[a-z-]+", word)} <= known, line


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in names(COMMANDS):
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        assert f"edge-runtime {command}" in capsys.readouterr().out


def _documents(page: Path) -> Iterator[str]:
    """YAML blocks that are mappings: whole documents, or some top-level keys of one."""
    for language, text in _BLOCK.findall(page.read_text()):
        if language == "yaml" and isinstance(yaml.safe_load(text), dict):
            yield text


def _whole(text: str, keys: set[str], known: set[str]) -> None:
    assert keys <= known, (keys - known, text)


def _filled(text: str, keys: set[str], **needed: str) -> str:
    """A document's required keys where a page shows only the others."""
    lines = [f"{key}: {value}" for key, value in {"schema": "1", **needed}.items() if key not in keys]
    return "\n".join([*lines, text])


def _commands(page: Path) -> Iterator[str]:
    for language, text in _BLOCK.findall(page.read_text()):
        if language == "console":
            for line in text.replace("\\\n", " ").splitlines():
                found = re.match(r"\$ (?:sudo )?(?:\S*/)?edge-runtime (\w.*)", line)
                if found:
                    yield found[1]
