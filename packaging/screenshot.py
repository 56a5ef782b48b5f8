"""Turns a captured terminal screen (`tmux capture-pane -p -e`) into an SVG for the documentation, without fonts from elsewhere.

tmux capture-pane -p -e -t demo | python packaging/screenshot.py "make demo" > docs/images/demo.svg
"""

from __future__ import annotations

import io
import re
import sys

from rich.console import Console
from rich.text import Text


def main() -> int:
    """Reads the screen from stdin, writes the SVG to stdout."""
    lines = [Text.from_ansi(line) for line in sys.stdin.read().rstrip().split("\n")]
    console = Console(record=True, width=max(line.cell_len for line in lines), file=io.StringIO())
    for line in lines:
        console.print(line, soft_wrap=True)
    svg = console.export_svg(title=sys.argv[1] if len(sys.argv) > 1 else "")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL).replace("Fira Code, monospace", "DejaVu Sans Mono, Menlo, Consolas, monospace")
    sys.stdout.write(svg)
    return 0


if __name__ == "__main__":
    sys.exit(main())
