"""Rules: pure decisions over facts."""
