"""Runs inside `trainforge.sender.migrate`, on the connection and in the transaction that it holds."""

from __future__ import annotations

from alembic import context

from trainforge.sender.schema_trust import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True
)
context.run_migrations()
