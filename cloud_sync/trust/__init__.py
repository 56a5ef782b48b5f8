"""Whether a pushed deployment may be taken: signatures, revisions, expiry and addressee, judged in a child process. Fetches nothing itself.

`Verifier` is the gateway's door. tuf and cryptography live in the child (`verify_process`) only: importing this package is cheap.
"""

from cloud_sync.trust.exchange import MAX_MESSAGE_BYTES, Artifact, blob_limit
from cloud_sync.trust.verifier import Fetch, Verified, Verifier

__all__ = ["MAX_MESSAGE_BYTES", "Artifact", "Fetch", "Verified", "Verifier", "blob_limit"]
