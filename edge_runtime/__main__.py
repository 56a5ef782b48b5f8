"""`python -m edge_runtime`: the same command as `edge-runtime`."""

from edge_runtime.cli.main import main

raise SystemExit(main())
