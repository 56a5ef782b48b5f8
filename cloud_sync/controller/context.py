"""What the controller's parts share: settings, database, keys and whoever must hear of a new deployment. Wired by `run`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloud_sync.controller.authority import Authority
    from cloud_sync.controller.engine import Database
    from cloud_sync.controller.settings import Settings
    from cloud_sync.controller.signing import Repository
    from cloud_sync.controller.sink import Sink


@dataclass
class Context:
    """One controller process. `deployed(gateway)` tells the publisher that a gateway has a new desired revision."""

    settings: Settings
    database: Database
    repository: Repository
    authority: Authority
    deployed: Callable[[str], None]
    sink: Sink | None = None
    now_ns: Callable[[], int] = field(default=time.time_ns)

    @property
    def tenant(self) -> str:
        return self.settings.tenant
