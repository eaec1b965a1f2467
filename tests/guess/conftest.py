"""The local hub and the tiny shapes of the model tests, and the fast sweep, for the tests of guesses."""

import sys
from pathlib import Path

for folder in ("gguf", "sweep"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / folder))
