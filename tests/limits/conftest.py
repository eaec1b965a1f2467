import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fake_nvml"))

from fake_nvml import fake_nvml, make_fake_nvml  # noqa: F401
from limits_bed import bed  # noqa: F401
