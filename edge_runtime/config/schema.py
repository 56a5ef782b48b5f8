"""JSON Schema of both documents, for editors: `# yaml-language-server: $schema=...`."""

from __future__ import annotations

from typing import Any

import msgspec

from edge_runtime.config.deployment import Deployment
from edge_runtime.config.gateway import GatewayFile

DOCUMENTS = {"gateway": GatewayFile, "deployment": Deployment}


def json_schema(name: str) -> dict[str, Any]:
    """The schema of `gateway` or `deployment` (JSON Schema 2020-12)."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(DOCUMENTS[name])}
