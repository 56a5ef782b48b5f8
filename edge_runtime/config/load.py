"""Reads gateway files and deployments from YAML or JSON. All problems of a document are found in one go. It does not judge meaning."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from edge_runtime.config.deployment import Deployment
from edge_runtime.config.gateway import GatewayFile
from edge_runtime.config.positions import Document, parse_document
from edge_runtime.config.typecheck import check_types
from edge_runtime.errors import ConfigError, Problem

Kind = TypeVar("Kind", bound=msgspec.Struct)


def load_gateway(path: Path) -> GatewayFile:
    """The gateway file at `path`. Raises ConfigError."""
    return parse_gateway(read(path), str(path))


def load_deployment(path: Path) -> Deployment:
    """The deployment at `path`. Raises ConfigError."""
    return parse_deployment(read(path), str(path))


def parse_gateway(text: bytes, file: str) -> GatewayFile:
    """A gateway file from its text. Raises ConfigError."""
    return decode(parse_document(text, file), GatewayFile)


def parse_deployment(text: bytes, file: str) -> Deployment:
    """A deployment from its text. Raises ConfigError."""
    return decode(parse_document(text, file), Deployment)


def read(path: Path) -> bytes:
    """The bytes of a document. Raises ConfigError saying why it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as err:
        raise ConfigError([Problem(str(path), 1, "(document)", f"cannot be read: {err.strerror}")]) from err


def decode(document: Document, kind: type[Kind]) -> Kind:
    """The document as `kind`. Raises ConfigError with every problem."""
    check_types(document, kind)
    if any(problem.fatal for problem in document.problems):
        raise ConfigError(sorted(document.problems, key=lambda problem: problem.line))
    try:
        return msgspec.convert(document.value, kind)
    except msgspec.ValidationError as err:
        message, _, where = str(err).partition(" - at `$")
        path = where.rstrip("`").lstrip(".")
        raise ConfigError([Problem(document.file, document.line(path), path or "(document)", message)]) from err
