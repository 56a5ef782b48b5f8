"""State of a temperature: normal, rising or hot. The node's own factory model, as a gateway runs it; `make` writes it again."""
