import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fake_nvml"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from fake_nvml import fake_nvml, make_fake_nvml  # noqa: F401
