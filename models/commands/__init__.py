"""The subcommands of `edge-runtime model`, one module each; importing this imports none of them."""
