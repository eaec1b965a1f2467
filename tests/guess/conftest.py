"""The local hub and the tiny shapes of the model tests, for the tests of guesses."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "gguf"))
