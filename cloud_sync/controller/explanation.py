"""`fleet why`: in sentences, why a gateway runs what it runs and what stands between it and what is wanted. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_REASONS = {
    "malformed": "the message was damaged or not one of ours",
    "unsigned": "a signature was missing or wrong; compare the gateway's trust root with the controller's",
    "wrong_gateway": "it was made out to another gateway",
    "old_revision": "the gateway has seen a higher revision; push again",
    "expired": "its signature or the repository's metadata had expired, or the gateway's clock is wrong; push again",
    "unknown_model": "it names a model that was not signed offline; approve it: edge-runtime controller approve",
    "model_unavailable": "a model could not be fetched in time; it tries again by itself",
    "model_refused": "a model did not pass its trial run on the gateway",
    "invalid": "it does not pass the gateway's own check",
    "does_not_fit": "it needs more memory, disk or time than this gateway has",
    "quarantined": "the same deployment failed there before; push a changed one",
    "unhealthy": "it ran, and its health was worse than the limits it carries",
    "crash_loop": "the gateway crashed three times with it",
    "no_space": "the gateway's disk is full",
    "deadline": "a step took too long",
    "superseded": "a newer one came",
}
_MINUTE_NS = 60 * 10**9


def explain(gateway: Mapping[str, Any], now_wall_ns: int) -> list[str]:
    """Sentences about one gateway, as `GET /v1/gateways/{id}` gives it: link, what runs, what was wanted, what is in the way."""
    name = str(gateway["gateway"])
    sentences = [_link(name, gateway, now_wall_ns)]
    reported = _reported(gateway)
    wanted = next(iter(gateway.get("deployments", [])), None)
    sentences.append(_running(name, reported))
    if wanted is None:
        return [*sentences, "Nothing was ever pushed to it."]
    sentences.append(
        f"Wanted is revision {wanted['revision']}, pushed by {wanted['created_by']} {_ago(wanted['created_wall_ns'], now_wall_ns)}."
    )
    sentences.append(_fate(gateway, wanted, reported, now_wall_ns))
    return sentences


def _link(name: str, gateway: Mapping[str, Any], now: int) -> str:
    if not gateway.get("status_wall_ns"):
        return f"{name} has never connected; join it: edge-runtime join, then edge-runtime run."
    state = "online" if gateway["online"] else "offline"
    return f"{name} is {state} since {_ago(gateway['status_wall_ns'], now)}, running version {gateway.get('version') or '?'}."


def _running(name: str, reported: Mapping[str, Any]) -> str:
    if not reported:
        return f"{name} has not reported any deployment yet."
    if reported.get("slot") == "factory":
        return "It runs its factory deployment."
    held = " on probation" if reported.get("slot") == "candidate" else ""
    return f"It runs revision {reported.get('running_revision')}{held} ({str(reported.get('running_digest'))[:19]})."


def _fate(gateway: Mapping[str, Any], wanted: Mapping[str, Any], reported: Mapping[str, Any], now: int) -> str:
    phase, revision = str(wanted["phase"]), wanted["revision"]
    if phase == "confirmed":
        return f"Revision {revision} was confirmed {_ago(wanted['phase_wall_ns'], now)}: all is as wanted."
    if phase in ("refused", "reverted"):
        reason, _, detail = str(wanted["reason"]).partition(": ")
        because = _REASONS.get(reason, reason or "no reason was given")
        verb = "refused it" if phase == "refused" else "took it back by itself"
        return f"The gateway {verb}: {because}." + (f" It says: {detail}" if detail else "")
    if wanted["expires_wall_ns"] <= now:
        return f"Revision {revision} expired before the gateway took it; push again."
    if phase == "probation":
        return f"Revision {revision} runs on probation; it is confirmed, or taken back, when that ends."
    if not gateway["online"]:
        return f"It will take revision {revision} when it is back; until then it decides by what it has."
    if reported.get("revision") == revision:
        return f"It is working on revision {revision} ({phase})."
    return f"It was offered revision {revision} {_ago(wanted['created_wall_ns'], now)} and has not answered yet."


def _reported(gateway: Mapping[str, Any]) -> Mapping[str, Any]:
    status = gateway.get("state", {}).get("status", {})
    found = status.get("deployment", {}) if isinstance(status, Mapping) else {}
    return found if isinstance(found, Mapping) else {}


def _ago(wall_ns: int, now: int) -> str:
    minutes = max(0, now - wall_ns) // _MINUTE_NS
    if minutes < 2:
        return f"{max(0, now - wall_ns) // 10**9} s ago"
    if minutes < 120:
        return f"{minutes} min ago"
    return f"{minutes // 60} h ago" if minutes < 2880 else f"{minutes // 1440} days ago"
