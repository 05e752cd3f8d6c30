"""Scripts stay short, and mostly science: what is not flags, files, logging or a summary.

    python -m pytest tests/test_lines.py -n0 -s

prints, for each script, its lines and the share of science in those below the imports.
"""

from pathlib import Path

import pytest
from test_shared_blocks import blocks_of

ROOT = Path(__file__).parent.parent
# script: most lines, least share of science
LIMITS = {}
HEAD = {"inline script metadata", "docstring", "imports"}
FILES = {"start_run", "start_writer", "make_writer", "finish", "main", "__main__"}
FILES |= {"load", "load_follower", "load_run", "stored_flags", "write_video"}


def count(script):
    """Returns a script's lines and, of those below the imports, the share that is science."""
    source = next(ROOT.glob(f"**/{script}.py")).read_text()
    lines = {name: text.count("\n") for name, text in blocks_of(source).items() if name not in HEAD}
    plumbing = sum(n for name, n in lines.items() if name.startswith("Args.") or name in FILES)
    return source.count("\n"), 1 - plumbing / sum(lines.values())
