"""Gateway file and deployment: typed, validated, with errors as file:line:key."""
