"""Ways into a running gateway from the same machine."""
