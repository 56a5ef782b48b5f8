"""Our own small INT8 models with their recipes."""
