"""Every reason that a gateway gives reaches the operator as a sentence, with its detail, and stands in the page that says what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cloud_sync.controller.explanation import explain
from edge_runtime.errors import DeploymentReason

PAGE = Path(__file__).resolve().parents[2] / "docs/deployments.md"
FAULTS = ("errors", "latency", "hang", "rules", "drift", "divergence")


@pytest.mark.parametrize("reason", DeploymentReason)
@pytest.mark.parametrize("phase", ["refused", "reverted"])
def test_fleet_why_says_every_reason_in_a_sentence_with_the_gateways_own_words(reason: DeploymentReason, phase: str) -> None:
    deployment = {"revision": 7, "phase": phase, "reason": f"{reason}: drift: 40 of 40", "created_by": "anna", "created_wall_ns": 0}
    found = {
        "gateway": "gw",
        "online": True,
        "status_wall_ns": 1,
        "deployments": [{**deployment, "phase_wall_ns": 0, "expires_wall_ns": 9}],
    }
    fate = explain(found, 5)[-1]
    assert re.fullmatch(r"The gateway (refused it|took it back by itself): .{15,}\. It says: drift: 40 of 40", fate)
    assert f": {reason}." not in fate


@pytest.mark.parametrize("word", [*(reason.value for reason in DeploymentReason), *FAULTS])
def test_the_page_says_what_to_do_for_every_reason(word: str) -> None:
    table = PAGE.read_text().partition("## Reasons, and what to do")[2]
    assert f"`{word}`" in table
