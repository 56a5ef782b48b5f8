"""The exception tree of the product.

    EdgeRuntimeError
    ├── InputError (ValueError)            what the user gave is wrong: exit code 2
    │   ├── ConfigError                    a gateway file or deployment; carries every Problem found
    │   ├── RuleError                      a rule text that does not parse or does not fit
    │   ├── ModelRefused                   a model that may not serve; `reason` names why
    │   └── DeploymentRefused              a pushed deployment that is not taken; `reason` names why
    ├── MissingDependency (ImportError)    an optional library; the message holds the install command
    ├── AdapterError (OSError)             hardware or driver failed for good
    │   └── AdapterDisconnected (ConnectionError)   the link is gone; retry with back-off
    ├── StoreError (OSError)
    │   └── StoreFull                      the hard cap or the disk is reached; a policy decides
    ├── TransportError (ConnectionError)   the broker refused or went away; retry with full jitter
    │   └── MessageTooLarge                over the broker's packet limit; trying again will not mend it
    ├── DeadlineExceeded (TimeoutError)
    └── CommandRefused (RuntimeError)      an actuator command was stale, duplicate or out-prioritised

Retryable is told by type: AdapterDisconnected, TransportError, DeadlineExceeded, StoreFull. Everything else is permanent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class EdgeRuntimeError(Exception):
    """Root of every error the product raises on purpose."""


class InputError(EdgeRuntimeError, ValueError):
    """What the user gave is wrong; the message says what was expected, what came and what to do."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding in a user's document: `file:line:key: message`."""

    file: str
    line: int
    key: str
    message: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.key}: {self.message}"


class ConfigError(InputError):
    """A gateway file or deployment with one or more problems, all of them listed."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class RuleError(InputError):
    """A rule text that does not parse, or names something of the wrong kind; `column` is 1-based."""

    def __init__(self, message: str, column: int = 1) -> None:
        self.column = column
        super().__init__(message)


class RefusalReason(StrEnum):
    """Why a model may not serve."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    UNSUPPORTED_FORMAT = "unsupported_format"
    TOO_LARGE = "too_large"
    EXTERNAL_DATA = "external_data"
    WRONG_SHAPE = "wrong_shape"
    WRONG_DTYPE = "wrong_dtype"
    LOAD_FAILED = "load_failed"
    RUN_FAILED = "run_failed"
    PROBE_CRASHED = "probe_crashed"
    PROBE_TIMEOUT = "probe_timeout"
    PROBE_MEMORY = "probe_memory"
    GOLDEN_MISMATCH = "golden_mismatch"


class ModelRefused(InputError):
    """A model that may not serve."""

    def __init__(self, reason: RefusalReason, message: str) -> None:
        self.reason = reason
        super().__init__(f"{reason.value}: {message}")


class DeploymentReason(StrEnum):
    """Why a pushed deployment was not taken, or was taken back."""

    MALFORMED = "malformed"
    UNSIGNED = "unsigned"
    WRONG_GATEWAY = "wrong_gateway"
    OLD_REVISION = "old_revision"
    EXPIRED = "expired"
    UNKNOWN_MODEL = "unknown_model"  # not signed offline
    MODEL_UNAVAILABLE = "model_unavailable"  # signed, but could not be fetched in time
    MODEL_REFUSED = "model_refused"
    INVALID = "invalid"
    DOES_NOT_FIT = "does_not_fit"
    QUARANTINED = "quarantined"
    UNHEALTHY = "unhealthy"
    CRASH_LOOP = "crash_loop"
    NO_SPACE = "no_space"
    DEADLINE = "deadline"
    SUPERSEDED = "superseded"


class DeploymentRefused(InputError):
    """A pushed deployment that is not taken; what runs goes on."""

    def __init__(self, reason: DeploymentReason, message: str) -> None:
        self.reason = reason
        super().__init__(f"{reason.value}: {message}")


class MissingDependency(EdgeRuntimeError, ImportError):
    """An optional library is not installed."""

    def __init__(self, library: str, extra: str) -> None:
        self.library = library
        self.extra = extra
        super().__init__(f"{library} is not installed. Install it with: pip install 'edge-runtime[{extra}]'")


class AdapterError(EdgeRuntimeError, OSError):
    """A driver or device failed in a way that trying again will not mend."""


class AdapterDisconnected(AdapterError, ConnectionError):
    """The device went away; the supervisor opens it again with back-off."""


class StoreError(EdgeRuntimeError, OSError):
    """The durable store cannot be used."""


class StoreFull(StoreError):
    """The hard cap of the store or the disk itself is reached."""


class TransportError(EdgeRuntimeError, ConnectionError):
    """The broker refused, forgot or went away."""


class MessageTooLarge(TransportError):
    """A message is larger than the broker takes."""


class DeadlineExceeded(EdgeRuntimeError, TimeoutError):
    """An operation did not end by its deadline."""


class CommandRefused(EdgeRuntimeError, RuntimeError):
    """An actuator command was stale, a duplicate or out-prioritised."""
