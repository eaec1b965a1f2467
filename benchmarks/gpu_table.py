"""Step (c): a whole grid on the card, as a table that the replay engine answers sweeps from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from gpu_bench import Bench, shortened, threads
from gpu_record import Deadline, OutOfTime, StepFile

from sweeper.engine.llama_cpp import LlamaCppEngine
from sweeper.lab.tables import TableHeader, TableRow, header_of, record_table
from sweeper.model.digest import sha256_of
from sweeper.model.header import read_header
from sweeper.records import Configuration, ModelFile, ModelRecord
from sweeper.space.space import SearchSpace, Traits, build_space

TOLD_EVERY = 20


def run(bench: Bench, step: StepFile, deadline: Deadline) -> None:
    """Record the grid, or go on with it. Rows are in the table's journal; the step's file counts them.

    Raises:
        OutOfTime: rows are left to be measured.
    """
    plan = bench.plan
    name = plan.table_model
    files = {quant: bench.models.wait(name, quant, deadline.left_seconds) for quant in plan.models[name][1]}
    space = _space(bench, files)
    path = bench.out / f"{name}-gpu.csv.gz"
    header = _header(bench, name, files, space)
    by_quant: dict[str | None, Path] = dict(files.items())
    done = [0, 0]

    def tell(finished: int, total: int, row: TableRow) -> None:
        done[:] = finished, total
        if finished % TOLD_EVERY == 0:
            print(f"table: {finished} of {total}", flush=True)
        if finished < total and deadline.left_seconds <= 0:
            raise OutOfTime(f"{finished} of {total} configurations are in the table's journal")

    deadline.demand(plan.table_stage.seconds)
    try:
        with LlamaCppEngine(by_quant) as engine:
            table = record_table(path, header, engine, bench.meter, plan.table_stage, progress=tell)
    finally:
        step.data |= {"configurations": done[1], "measured": done[0]}
    states = [row.state for row in table.rows]
    step.data |= {
        "table": path.name,
        "configurations": len(states),
        "measured": len(states),
        "by_state": {state: states.count(state) for state in sorted(set(states))},
    }


def _space(bench: Bench, files: Mapping[str, Path]) -> SearchSpace:
    plan = bench.plan
    name = plan.table_model
    n_layer = plan.models[name][0].n_layer
    count = threads(bench)
    workload = plan.table_workload
    base = Configuration(
        n_gpu_layers=n_layer + 1 if bench.engine.gpu_offload else 0,
        n_ctx=1024,
        n_threads=count,
        n_threads_batch=count,
        quant=next(iter(files)),
    )
    layers = sorted({(n_layer + 1) // 2, *plan.table_layers, n_layer + 1})
    traits = Traits(
        n_layer=n_layer,
        gpu_offload=bench.engine.gpu_offload,
        prompt_tokens=workload.prompt_tokens,
        n_ctx_needed=workload.n_ctx_needed,
    )
    offloaded = {"n_gpu_layers": layers} if bench.engine.gpu_offload else {}
    return build_space(offloaded | dict(plan.table_space), base, traits)


def _header(bench: Bench, name: str, files: Mapping[str, Path], space: SearchSpace) -> TableHeader:
    first = read_header(next(iter(files.values())))
    model = ModelRecord(
        name=f"synthetic {name}",
        architecture=first.architecture,
        parameters=first.parameters,
        n_layer=first.n_layer,
        n_ctx_train=first.n_ctx_train,
        source="synthetic",
        base_quant=next(iter(files)),
        files={
            quant: ModelFile(quant, file.name, sha256_of(file, bench.work), file.stat().st_size)
            for quant, file in files.items()
        },
    )
    source = bench.meter.source
    return header_of(
        f"{name}-gpu",
        space,
        bench.machine,
        bench.engine,
        model,
        bench.plan.table_workload,
        replace(source, device=shortened(bench.uuid)),
        bench.plan.table_stage,
        recorded_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        idle_watts=bench.idle.median if bench.idle else None,
        note="the sensor is simulated (tests/fake_nvml): its watts are no measurement"
        if bench.simulated
        else "",
    )
