"""The contract of engines. A test subclasses it and provides its fixtures."""

from __future__ import annotations

import pytest

from sweeper.engine.base import Engine
from sweeper.errors import TrialFailed
from sweeper.records import Configuration


class EngineContract:
    """The contract of every engine.

    The fixture ``engine`` is a fresh engine, and ``configuration`` is a configuration that it can run. ``keeps_model``
    is False for an engine that cannot change the context of a loaded model, such as a server, and so loads again.
    """

    keeps_model = True

    def test_names_itself(self, engine: Engine, configuration: Configuration) -> None:
        """The record has a name and a version."""
        with engine:
            assert engine.record.name
            assert engine.record.version

    def test_counts_tokens_and_seconds(self, engine: Engine, configuration: Configuration) -> None:
        """Windows last at least as long as requested, and their tokens are whole rounds."""
        with engine:
            report = engine.load(configuration)
            assert report.reloaded
            assert report.load_seconds > 0
            for window in (engine.prefill(16, 0, 0.05, 5.0), engine.decode(8, 0, 0.05, 5.0)):
                assert window.tokens > 0
                assert window.seconds > 0
                assert window.ended - window.started >= 0.05 - 1e-6
                assert window.ended - window.started >= window.seconds - 1e-6
                assert window.tokens_per_second == window.tokens / window.seconds

    def test_decode_ends_at_its_limit(self, engine: Engine, configuration: Configuration) -> None:
        """The engine cuts a round that would last longer than ``max_seconds``."""
        with engine:
            engine.load(configuration)
            window = engine.decode(10_000, 0, 0.01, 0.05)
            assert 0 < window.tokens < 10_000

    def test_keeps_the_model_where_only_the_context_changes(
        self, engine: Engine, configuration: Configuration
    ) -> None:
        """A change that needs no load of the model causes none, and the report tells of each load."""
        with engine:
            engine.load(configuration)
            assert not engine.load(configuration).reloaded
            other = engine.load(configuration.with_(n_ubatch=configuration.n_ubatch // 2))
            assert other.reloaded is not self.keeps_model
            assert other.in_force["n_ubatch"] == configuration.n_ubatch // 2
            assert engine.load(configuration.with_(use_mmap=not configuration.use_mmap)).reloaded

    def test_refuses_windows_without_a_load(self, engine: Engine, configuration: Configuration) -> None:
        """A window without a load fails the trial, and the engine can be used afterwards."""
        with engine:
            with pytest.raises(TrialFailed):
                engine.decode(8, 0, 0.01, 1.0)
            engine.load(configuration)
            assert engine.decode(8, 0, 0.01, 1.0).tokens > 0

    def test_close_may_be_called_twice(self, engine: Engine, configuration: Configuration) -> None:
        """Closing a closed engine does nothing."""
        engine.load(configuration)
        engine.close()
        engine.close()
