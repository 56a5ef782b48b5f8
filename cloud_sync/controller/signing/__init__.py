"""The signed repository of a controller: keys, roles, what was approved offline, and the deployments that the director signs."""

from edge_runtime.errors import MissingDependency

try:
    from cloud_sync.controller.signing.keys import KeyRing
    from cloud_sync.controller.signing.repository import Approved, Repository
except ModuleNotFoundError as err:
    raise MissingDependency((err.name or "tuf").split(".")[0], "controller") from err

__all__ = ["Approved", "KeyRing", "Repository"]
