"""Recording a grid and answering trials from it."""

import gzip
import json
import statistics
from dataclasses import replace

import pytest

from sweeper.errors import ConfigError, EngineRefused, OutOfMemory
from sweeper.lab.replay import ReplayEngine, replay_meter
from sweeper.lab.simulated_power import SimulatedLimits, SimulatedMeter
from sweeper.lab.simulator import (
    MACHINES,
    SimulatedEngine,
    default_configuration,
    limit_ranges,
    machine_record,
    model_record,
)
from sweeper.lab.tables import TableRow, cheapest_order, header_of, merged, read_table, record_table
from sweeper.lab.virtual_time import VirtualClock
from sweeper.measure.trial import Stage, measure
from sweeper.parameters import MODEL_KEYS
from sweeper.records import Caveat, Configuration, Workload
from sweeper.space.space import Traits, build_space

WORKLOAD = Workload(screening_repeats=4)
STAGE = Stage.screening(WORKLOAD)


class Rig:
    """A simulated PC, small enough to record whole."""

    def __init__(self, spec=None):
        machine = MACHINES["gpu_pc"]
        self.engine = SimulatedEngine(machine, VirtualClock())
        self.meter = SimulatedMeter(self.engine.trace, self.engine.clock)
        self.limits = SimulatedLimits(limit_ranges(machine))
        spec = spec or {
            "quant": ["Q8_0", "Q4_K_M"],
            "n_gpu_layers": {"low": 40, "high": 49, "step": 3},
            "n_threads": [2, 8],
            "flash_attn": [True, False],
            "power_limit_watts": [None, 120],
        }
        traits = Traits(n_layer=48, gpu_offload=True, n_ctx_needed=WORKLOAD.n_ctx_needed)
        self.space = build_space(spec, default_configuration(machine), traits)
        self.header = header_of(
            "made-up",
            self.space,
            machine_record(machine),
            self.engine.record,
            model_record(machine, ["Q8_0", "Q4_K_M"]),
            WORKLOAD,
            self.meter.source,
            STAGE,
            idle_watts=56.0,
        )

    def record(self, path, **more):
        return record_table(path, self.header, self.engine, self.meter, STAGE, limits=self.limits, **more)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "made-up.csv.gz"
    Rig().record(path)
    return path


def test_a_table_holds_the_whole_grid_with_every_repeat(path):
    rig, table = Rig(), read_table(path)
    assert {row.configuration for row in table.rows} == set(rig.space.grid())
    assert {row.state for row in table.rows} == {"complete", "out_of_memory"}
    for row in table.rows:
        if row.state == "complete":
            assert len(row.tokens_per_second) == len(row.watts or ()) == 4
            assert row.load_seconds > 0
        else:
            assert "GPU memory" in (row.reason or "")
            assert row.tokens_per_second == ()
    assert not path.with_name(path.name + ".journal").exists()


def test_a_table_is_read_as_it_was_written_and_its_space_is_the_same(path, tmp_path):
    table = read_table(path)
    again = tmp_path / "again.csv.gz"
    written = Rig().record(again)
    assert read_table(again) == written
    assert again.read_bytes() == path.read_bytes()
    space = Rig().space
    assert list(table.header.space.grid()) == list(space.grid())
    assert table.header.space.distributions() == space.distributions()


def test_each_model_is_loaded_once(path):
    table = read_table(path)
    models = {tuple(getattr(r.configuration, k) for k in MODEL_KEYS) for r in table.rows}
    complete = [r for r in table.rows if r.state == "complete"]
    assert sum(r.reloaded for r in complete) <= len(models) + sum(r.state != "complete" for r in table.rows)
    seen = []
    for row in table.rows:
        model = tuple(getattr(row.configuration, k) for k in MODEL_KEYS)
        if not seen or seen[-1] != model:
            assert model not in seen
            seen.append(model)


def test_the_order_is_shuffled_but_the_same_each_time():
    grid = list(Rig().space.grid())
    assert cheapest_order(grid) == cheapest_order(reversed(list(reversed(grid))))
    assert cheapest_order(grid) != cheapest_order(grid, seed=1)
    assert sorted(c.digest for c in cheapest_order(grid)) == sorted(c.digest for c in grid)


def test_as_found_is_given_back_between_rows(tmp_path):
    rig = Rig({"power_limit_watts": [None, 120], "n_threads": [1, 2, 4]})
    asked = []

    def note(done, total, row):
        asked.append((row.configuration.power_limit_watts, rig.limits.in_force["power_limit_watts"]))

    rig.record(tmp_path / "t.csv.gz", progress=note)
    assert {(wished, 175 if wished is None else wished) for wished, _ in asked} == set(asked)
    assert len({wished for wished, _ in asked}) == 2


class Killed(BaseException):
    pass


def test_a_recording_goes_on_where_it_was_killed(tmp_path):
    path = tmp_path / "t.csv.gz"
    measured = []

    def die_at_ten(done, total, row):
        measured.append(row.configuration.digest)
        if len(measured) == 10:
            raise Killed

    with pytest.raises(Killed):
        Rig().record(path, progress=die_at_ten)
    journal = path.with_name(path.name + ".journal")
    with journal.open("a") as file:
        file.write('{"configuration": {"n_gpu_la')  # cut short by the kill
    assert not path.exists()
    rest = []
    table = Rig().record(path, progress=lambda done, total, row: rest.append((done, total)))
    assert len(rest) == len(table.rows) - 10
    assert rest[-1] == (len(table.rows), len(table.rows))
    assert len({row.configuration.digest for row in table.rows}) == len(table.rows)
    assert read_table(path) == table


def test_a_journal_of_another_space_is_not_taken_over(tmp_path):
    path = tmp_path / "t.csv.gz"

    def die(done, total, row):
        raise Killed

    with pytest.raises(Killed):
        Rig().record(path, progress=die)
    with pytest.raises(ConfigError, match="another space, engine, model, machine or workload"):
        Rig({"n_threads": [1, 2]}).record(path)


@pytest.mark.parametrize("damage", ["nothing", "text", "header", "rows", "absent"])
def test_what_is_no_table_is_one_clear_line(tmp_path, path, damage):
    bad = tmp_path / "bad.csv.gz"
    text = gzip.decompress(path.read_bytes()).decode()
    if damage == "nothing":
        bad.write_bytes(b"")
    elif damage == "text":
        bad.write_text("hello")
    elif damage == "header":
        bad.write_bytes(gzip.compress(text.replace('"machine"', '"nothing"', 1).encode()))
    elif damage == "rows":
        bad.write_bytes(gzip.compress(text.replace("complete", "who knows").encode()))
    with pytest.raises(ConfigError, match=r"bad\.csv\.gz") as caught:
        read_table(bad)
    assert "\n" not in str(caught.value)


def test_an_empty_file_is_no_table(tmp_path):
    bad = tmp_path / "bad.csv.gz"
    bad.write_bytes(gzip.compress(json.dumps({}).encode()))
    with pytest.raises(ConfigError):
        read_table(bad)


def replay(path, seed=0):
    engine = ReplayEngine(read_table(path), VirtualClock(), seed)
    return engine, replay_meter(engine)


def test_a_replayed_trial_has_the_recorded_figures_and_says_so(path):
    engine, meter = replay(path)
    row = next(r for r in engine.table.rows if r.state == "complete" and r.configuration.n_gpu_layers == 49)
    result = measure(row.configuration, engine, meter, WORKLOAD, STAGE)
    decode = [w for w in result.windows if w.phase == "decode"]
    for window in decode:
        nearest = min(row.tokens_per_second, key=lambda speed: abs(speed - window.tokens / window.seconds))
        assert window.tokens / window.seconds == pytest.approx(nearest)
        assert window.energy.watts == pytest.approx(row.watts[row.tokens_per_second.index(nearest)])
    speed = statistics.median(row.tokens_per_second)
    assert result.metrics["tokens_per_second"].median == pytest.approx(speed, rel=0.05)
    assert Caveat.SIMULATED in result.caveats
    assert meter.source.name == "replay of simulated"
    assert "made-up" in engine.record.build
    assert engine.record.simulated


def test_a_replay_costs_what_the_recording_cost(path):
    engine, _ = replay(path)
    rows = [r for r in engine.table.rows if r.state == "complete" and r.configuration.quant == "Q4_K_M"]
    first = rows[0].configuration
    loads = [r.load_seconds for r in engine.table.rows if r.reloaded]
    assert engine.load(first).reloaded
    assert min(loads) <= engine.clock() <= max(loads)
    before = engine.clock()
    threads = 2 if first.n_threads == 8 else 8
    assert not engine.load(first.with_(n_threads=threads)).reloaded
    assert engine.clock() - before < min(loads) / 5


def test_what_failed_fails_again_and_what_is_not_there_is_refused(path):
    engine, _ = replay(path)
    failed = next(r for r in engine.table.rows if r.state == "out_of_memory")
    with pytest.raises(OutOfMemory, match="GPU memory"):
        engine.load(failed.configuration)
    assert engine.clock() > 0
    with pytest.raises(EngineRefused, match="no configuration is loaded"):
        engine.decode(1, 0, 1, 1)
    with pytest.raises(EngineRefused, match="does not contain this configuration"):
        engine.load(Configuration(n_threads=3))
    assert engine.memory() == (None, None)


def test_the_same_seed_draws_the_same_repeats(path):
    def speeds(seed):
        engine, _ = replay(path, seed)
        row = next(r for r in engine.table.rows if r.state == "complete")
        engine.load(row.configuration)
        return [engine.decode(64, 0, 1, 2).tokens_per_second for _ in range(12)]

    assert speeds(1) == speeds(1) != speeds(2)


def test_the_source_of_a_replay_keeps_its_scope(path):
    source = replay(path)[1].source
    assert (source.scope, source.kind) == ("simulated", "simulated")
    assert "recorded with simulated" in (source.note or "")


def test_passes_lie_far_apart_and_go_on_where_they_were_cut(path, tmp_path):
    spec = {"quant": ["Q8_0", "Q4_K_M"], "n_threads": [2, 4, 8], "n_gpu_layers": [0, 49]}

    def record(name, stop_after=None):
        rig = Rig(spec)
        rig.header = replace(rig.header, passes=3)
        visited = []

        def tell(done, total, row):
            visited.append((done, total, row.configuration.digest))
            if len(visited) == stop_after:
                raise KeyboardInterrupt

        return rig.record(tmp_path / name, progress=tell), visited

    whole, visited = record("whole.csv.gz")
    assert [done for done, _, _ in visited] == list(range(1, 37))
    assert visited[0][1] == 36
    orders = [[digest for _, _, digest in visited[i : i + 12]] for i in (0, 12, 24)]
    assert len(set(map(frozenset, orders))) == 1
    assert len(set(map(tuple, orders))) == 3
    for row in whole.rows:
        repeats = 0 if row.state == "out_of_memory" else 3 * WORKLOAD.screening_repeats
        assert len(row.tokens_per_second) == len(row.watts or ()) == repeats
    with pytest.raises(KeyboardInterrupt):
        record("cut.csv.gz", stop_after=17)
    again, visited = record("cut.csv.gz")
    assert [done for done, _, _ in visited] == list(range(18, 37))
    assert {row.configuration for row in again.rows} == {row.configuration for row in whole.rows}
    assert {len(row.tokens_per_second) for row in again.rows} == {
        len(row.tokens_per_second) for row in whole.rows
    }


def test_a_visit_that_failed_is_told_of_and_costs_the_others_nothing():
    good = TableRow(
        Configuration(),
        "complete",
        load_seconds=2.0,
        tokens_per_second=(1.0,),
        prompt_tokens_per_second=(5.0,),
    )
    bad = TableRow(Configuration(), "failed", "signal 11")
    row = merged([bad, good, replace(good, load_seconds=3.0)])
    assert (row.state, row.load_seconds, row.tokens_per_second, row.watts) == (
        "complete",
        2.0,
        (1.0, 1.0),
        None,
    )
    assert row.reason == "1 of 3 visits failed: signal 11"
    assert merged([bad, bad]) == bad


def test_a_table_names_the_models_files_without_their_folders():
    rig = Rig()
    model = rig.header.model
    somewhere = replace(
        model, files={q: replace(f, path=f"/home/me/{q}.gguf") for q, f in model.files.items()}
    )
    header = header_of(
        "t", rig.space, rig.header.machine, rig.engine.record, somewhere, WORKLOAD, rig.meter.source, STAGE
    )
    assert {q: f.path for q, f in header.model.files.items()} == {
        "Q8_0": "Q8_0.gguf",
        "Q4_K_M": "Q4_K_M.gguf",
    }
