"""The rig of llama.cpp: its worker process with this machine's meter and limits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from sweeper.config import Settings
from sweeper.errors import EngineCrashed, EngineRefused, EngineTimeout, OutOfMemory
from sweeper.model.quality import CHUNK_TOKENS
from sweeper.records import Caveat, Configuration
from sweeper.rig.base import Rig
from sweeper.rig.here import look_around, meter_and_limits, obtained, this_machine

if TYPE_CHECKING:
    from sweeper.engine.llama_cpp import LlamaCppEngine
    from sweeper.engine.llama_server import LlamaServerEngine
    from sweeper.model.forecast import Forecaster


def llama_rig(settings: Settings, root: Path, held: ExitStack, say: Callable[[str], None]) -> Rig:
    """llama.cpp in a worker process, with this machine's meter and limits."""
    from sweeper.engine.llama_cpp import LlamaCppEngine, demand_library
    from sweeper.model.forecast import Forecaster

    demand_library()  # before anything is downloaded or written
    load, busy = look_around(settings, held, say)
    model = obtained(settings, root, say)
    forecaster = held.enter_context(Forecaster())
    for file in model.files.values():
        forecaster.demand_generator(Path(file.path))
    files: dict[str | None, Path] = {quant: Path(file.path) for quant, file in model.files.items()}
    engine = held.enter_context(
        LlamaCppEngine(
            files | {None: Path(model.file(None).path)},
            settings.engine.environment,
            settings.engine.window_grace_seconds,
            settings.engine.load_timeout_seconds,
            keep_in=root,
        )
    )
    engine_record = engine.record
    meter, notes, limits = meter_and_limits(settings, root, held, say, engine_record.gpu_offload)
    return Rig(
        engine=engine,
        engine_record=engine_record,
        machine=this_machine(),
        model=model,
        meter=meter,
        limits=limits,
        notes=(busy, *notes) if busy else notes,
        quality=lambda _: {},
        forecast=lambda c: why_it_does_not_fit(forecaster, engine, c),
        standing_caveats=(Caveat.SYNTHETIC_QUALITY,) if model.source == "synthetic" else (),
        use_files=engine.use_files,
        measure_as=engine.measure_as,
        make_room=lambda path, n_gpu_layers: make_room(forecaster, engine, path, n_gpu_layers),
        load=load,
    )


def make_room(
    forecaster: Forecaster, engine: LlamaCppEngine | LlamaServerEngine, path: Path, n_gpu_layers: int
) -> None:
    """Unload the engine if the model at ``path`` does not fit beside it, as the quality check loads it.

    Raises:
        OutOfMemory: the model does not fit even then.
        EngineRefused, EngineCrashed, EngineTimeout: llama.cpp could not plan its memory.
    """
    wanted = Configuration(n_gpu_layers=n_gpu_layers, n_ctx=CHUNK_TOKENS, n_batch=CHUNK_TOKENS)
    if forecaster.forecast(path, wanted).fits() is not None:
        engine.unload()
        if why := forecaster.forecast(path, wanted).fits():
            raise OutOfMemory(why)


def why_it_does_not_fit(
    forecaster: Forecaster,
    engine: LlamaCppEngine | LlamaServerEngine,
    configuration: Configuration,
    draft: Path | None = None,
) -> str | None:
    """The reason why a configuration cannot run here by llama.cpp's own memory plan, or None.

    ``draft`` is the file of a draft model that is loaded beside the model. If the plan itself fails, this returns None:
    the trial then runs and names the failure.
    """
    from sweeper.model.forecast import HOST, of_draft

    try:
        plan = forecaster.forecast(engine.path_of(configuration), configuration)
        if draft is not None:
            plan = plan.beside(forecaster.forecast(draft, of_draft(configuration)))
    except (EngineRefused, OutOfMemory) as failure:
        return str(failure)
    except (EngineCrashed, EngineTimeout):
        return None
    host_mib, device_mib = engine.held_mib()
    devices = [device for device in plan.devices if device != HOST]
    # llama.cpp does not report how much of the loaded model each device holds, so this assumes equal shares.
    share = {device: device_mib / len(devices) for device in devices}
    return plan.fits({HOST: host_mib} | share)
