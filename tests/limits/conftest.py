import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fake_nvml"))

from fake_nvml import fake_nvml, make_fake_nvml  # noqa: F401
from limits_bed import bed  # noqa: F401


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake driver answers at once. Processes of their own wait as long as always."""
    monkeypatch.setattr("sweeper.limits.device_lock.WAIT_SECONDS", 0.2)
    monkeypatch.setattr("sweeper.limits.knob.READ_BACK_SECONDS", 0.05)
    monkeypatch.setattr("sweeper.limits.restore.LATE_SECONDS", 0.1)
