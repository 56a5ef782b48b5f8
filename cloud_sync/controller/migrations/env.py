"""What Alembic runs for every command: on the connection that the program gives it, and only there."""

from __future__ import annotations

from alembic import context

from cloud_sync.controller.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
