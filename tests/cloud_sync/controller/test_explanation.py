"""`fleet why`: every state of a gateway has its sentences."""

from __future__ import annotations

from typing import Any

import pytest

from cloud_sync.controller.explanation import explain

NOW = 1_800_000_000 * 10**9
MINUTE = 60 * 10**9


def gateway(phase: str = "offered", reason: str = "", **changes: Any) -> dict[str, Any]:
    deployment = {
        "revision": 7,
        "phase": phase,
        "reason": reason,
        "created_by": "anna",
        "created_wall_ns": NOW - 5 * MINUTE,
        "phase_wall_ns": NOW - 3 * MINUTE,
        "expires_wall_ns": NOW + 1000 * MINUTE,
    }
    reported = {"running_revision": 6, "running_digest": "sha256:" + "ab" * 32, "slot": "good", "revision": 6}
    found = {
        "gateway": "gw-1",
        "online": True,
        "version": "0.3.0",
        "status_wall_ns": NOW - 9 * MINUTE,
        "state": {"status": {"deployment": reported}},
        "deployments": [deployment],
    }
    return found | changes


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (gateway(), "was offered revision 7 5 min ago and has not answered yet"),
        (gateway(online=False), "when it is back"),
        (gateway("confirmed"), "confirmed 3 min ago: all is as wanted"),
        (gateway("reverted", "unhealthy: p99 120 ms"), "took it back by itself: it ran, and its health was worse"),
        (gateway("refused", "unknown_model: sha256:12"), "refused it: it names a model that was not signed offline"),
        (gateway("probation"), "runs on probation"),
        (gateway(deployments=[]), "Nothing was ever pushed"),
        (gateway(status_wall_ns=0), "has never connected"),
        (gateway(state={}), "has not reported any deployment"),
        (gateway(state={"status": {"deployment": "rubbish"}}), "has not reported any deployment"),
    ],
)
def test_it_says_what_stands_in_the_way(found: dict[str, Any], expected: str) -> None:
    assert expected in " ".join(explain(found, NOW))


def test_an_expired_offer_asks_for_another_push() -> None:
    found = gateway()
    found["deployments"][0]["expires_wall_ns"] = NOW - 1
    assert "expired before the gateway took it; push again" in " ".join(explain(found, NOW))
