import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fake_nvml"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from fake_nvml import fake_nvml, make_fake_nvml  # noqa: F401


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that all users may enter; pytest shuts its own to others at each start of another session."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)
