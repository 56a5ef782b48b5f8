"""Durable state on SQLite."""
