"""Every engine passes the same suite."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_contract import EngineContract

from sweeper.engine.llama_cpp import LlamaCppEngine
from sweeper.lab.simulator import MACHINES, SimulatedEngine, default_configuration
from sweeper.lab.virtual_time import VirtualClock
from sweeper.records import Configuration


class TestLlamaCppEngine(EngineContract):
    @pytest.fixture
    def engine(self, smallest_model: Path) -> LlamaCppEngine:
        return LlamaCppEngine({None: smallest_model})

    @pytest.fixture
    def configuration(self) -> Configuration:
        return Configuration(n_ctx=512, n_batch=64, n_ubatch=64, n_threads=1, n_threads_batch=1)


class TestSimulatedEngine(EngineContract):
    @pytest.fixture
    def engine(self) -> SimulatedEngine:
        return SimulatedEngine(MACHINES["minipc"], VirtualClock())

    @pytest.fixture
    def configuration(self) -> Configuration:
        return default_configuration(MACHINES["minipc"])
