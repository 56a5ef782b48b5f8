"""The verbs of a rule's `then`, and the actuator states that they mean. Knows no actuators."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from edge_runtime.errors import InputError

VERBS: dict[str, str] = {
    "open": "open",
    "close": "closed",
    "start": "running",
    "stop": "stopped",
    "enable": "enabled",
    "disable": "disabled",
    "on": "on",
    "off": "off",
}
SET = "set"


def actions(then: Mapping[str, str | tuple[str, ...]]) -> list[tuple[str, str]]:
    """`(actuator, state)` in the order written: {close: valve1} and {set: "speed=30"}.

    Raises InputError for an unknown verb, a `set` without `=`, or an actuator that is told two states.
    """
    found: dict[str, str] = {}
    for verb, targets in then.items():
        for target in (targets,) if isinstance(targets, str) else targets:
            actuator, state = _action(verb, target)
            if found.setdefault(actuator, state) != state:
                raise InputError(f"then: `{actuator}` is told both `{found[actuator]}` and `{state}`; keep one of them")
    return list(found.items())


def _action(verb: str, target: str) -> tuple[str, str]:
    if verb == SET:
        actuator, equals, state = (part.strip() for part in target.partition("="))
        if not (actuator and equals and state):
            raise InputError(f'then: set: expected `actuator=state`, such as set: "valve1=closed", got `{target}`')
        return actuator, state
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, (*VERBS, SET), n=1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        raise InputError(f"then: unknown verb `{verb}`{hint} (known: {', '.join((*VERBS, SET))})")
    return target, VERBS[verb]
