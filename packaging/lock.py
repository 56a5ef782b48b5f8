"""Writes requirements/*.lock from pyproject.toml: every version and hash pinned, no host named, for Python 3.11 to 3.14.

Needs `uv` (pip install uv). The build backend is locked too, so that an editable install needs no isolated build.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKS = {"demo": ["demo"], "dev": ["dev"]}


def main() -> int:
    """Writes every lock file; returns the exit code."""
    for name, extras in LOCKS.items():
        command = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes"]
        command += ["--no-emit-index-url", "--no-emit-find-links", "--no-annotate", "--no-header"]
        command += [word for extra in extras for word in ("--extra", extra)]
        command += ["--constraint", "requirements/constraints.txt"]
        command += ["pyproject.toml", "requirements/build.in", "--output-file", f"requirements/{name}.lock"]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
