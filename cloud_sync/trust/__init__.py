"""Whether a pushed deployment may be taken: signatures, revisions, expiry and addressee, judged in a child process. Fetches nothing itself.

`Verifier` is the gateway's door. tuf and cryptography live in the child (`verify_process`) only, and the child loads nothing of the
gateway: names are looked up when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloud_sync.trust.exchange import MAX_MESSAGE_BYTES, Artifact, blob_limit
    from cloud_sync.trust.verifier import Fetch, Verified, Verifier

__all__ = ["MAX_MESSAGE_BYTES", "Artifact", "Fetch", "Verified", "Verifier", "blob_limit"]

_EXCHANGE = frozenset({"MAX_MESSAGE_BYTES", "Artifact", "blob_limit"})


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.exchange" if name in _EXCHANGE else f"{__name__}.verifier"), name)
