"""The rig of the user's own llama-server, with this machine's meter and limits. It needs no llama-cpp-python.

Where llama-cpp-python is installed, it plans memory and measures quality, and makes quantisations. Without it, the
model is tuned as it is, and configurations that do not fit are learned from their failures. A llama-perplexity beside
the server then measures quality.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sweeper.client.prompt_file import read_prompts
from sweeper.client.requests import Prompt
from sweeper.config import Settings
from sweeper.engine.server_dialect import perplexity_tool
from sweeper.errors import ConfigError, EngineMissingError
from sweeper.records import Caveat, Configuration, ModelRecord
from sweeper.rig.base import Rig
from sweeper.rig.here import look_around, meter_and_limits, obtained, this_machine
from sweeper.rig.llama_cpp import make_room, why_it_does_not_fit

if TYPE_CHECKING:
    from sweeper.engine.llama_server import LlamaServerEngine
    from sweeper.engine.perplexity import PerplexityMeter
    from sweeper.model.forecast import Forecaster

NO_LIBRARY = (
    "without llama-cpp-python, memory is not planned and no quantisations are made, so the model is tuned "
    "as it is"
)
NO_QUALITY = "without llama-cpp-python or a llama-perplexity beside the server, quality is not measured"


def server_rig(settings: Settings, root: Path, held: ExitStack, say: Callable[[str], None]) -> Rig:
    """The user's llama-server, with this machine's meter and limits."""
    from sweeper.model.forecast import Forecaster

    own = cast("str | None", settings.workload.prompts)
    _refuse_variables(settings.engine.environment)
    load, busy = look_around(settings, held, say)
    engine = held.enter_context(_engine(settings, () if own is None else read_prompts(Path(own)).prompts))
    record = engine.record  # asks the program for its options, so a wrong one ends the sweep here
    model = obtained(settings, root, say)
    engine.use_draft(model.draft)
    files: dict[str | None, Path] = {quant: Path(file.path) for quant, file in model.files.items()}
    engine.use_files(files | {None: Path(model.file(None).path)})
    notes = [busy] if busy else []
    if ignored := engine.ignored_variables:
        notes.append(
            f"llama-server does not get these variables, which would change its settings: {', '.join(ignored)}"
        )
    has_library = importlib.util.find_spec("llama_cpp") is not None
    forecaster = held.enter_context(Forecaster()) if has_library else None
    perplexity, missing = (None, []) if has_library else _perplexity(engine)
    notes += missing
    measures_quality = has_library or perplexity is not None
    meter, sensors, limits = meter_and_limits(settings, root, held, say, record.gpu_offload)

    return Rig(
        engine=engine,
        engine_record=record,
        machine=this_machine(),
        model=model,
        meter=meter,
        limits=limits,
        notes=(*notes, *sensors),
        quality=lambda _: {},
        forecast=partial(_why_it_does_not_fit, forecaster, engine, model, record.gpu_offload),
        standing_caveats=(Caveat.SYNTHETIC_QUALITY,)
        if model.source == "synthetic" and measures_quality
        else (),
        use_files=engine.use_files,
        make_room=partial(_make_room, forecaster, engine),
        options=engine.dialect.keys(),
        speculation=engine.dialect.speculation(),
        use_texts=engine.use_texts if own is None else None,
        own_placement=engine.own_placement if engine.dialect.find("fit") else None,
        measures_quality=measures_quality,
        makes_quantisations=has_library,
        quality_meter=perplexity,
        load=load,
    )


def _why_it_does_not_fit(
    forecaster: Forecaster | None,
    engine: LlamaServerEngine,
    model: ModelRecord,
    gpu_offload: bool,
    configuration: Configuration,
) -> str | None:
    """The forecast's reason against a configuration; None where it fits, or where nothing here can tell."""
    placed_by_server = configuration.fit and gpu_offload  # the server itself chooses a placement that fits
    if forecaster is None or placed_by_server:
        return None
    draft = model.draft_file(configuration)
    beside = Path(draft.path) if draft is not None else None
    return why_it_does_not_fit(forecaster, engine, configuration, beside)


def _make_room(
    forecaster: Forecaster | None, engine: LlamaServerEngine, path: Path, n_gpu_layers: int
) -> None:
    if forecaster is None:
        engine.unload()  # nothing here can tell whether both fit
    else:
        make_room(forecaster, engine, path, n_gpu_layers)


def _perplexity(engine: LlamaServerEngine) -> tuple[partial[PerplexityMeter] | None, list[str]]:
    """What measures quality without llama-cpp-python, if anything does, and notes on what is missing."""
    from sweeper.engine.perplexity import PerplexityMeter

    try:
        tool = perplexity_tool(engine.dialect, engine.whole_environment())
    except EngineMissingError as error:
        return None, [NO_LIBRARY, f"quality is not measured: {error}"]
    if tool is None:
        return None, [NO_LIBRARY, NO_QUALITY]
    return partial(PerplexityMeter, tool, engine.changes_of_environment(tool)), [NO_LIBRARY]


def _engine(settings: Settings, prompts: Sequence[Prompt]) -> LlamaServerEngine:
    from sweeper.engine.llama_server import LlamaServerEngine

    wanted = settings.engine
    return LlamaServerEngine(
        "llama-server" if wanted.binary is None else wanted.binary,
        {},
        wanted.environment,
        wanted.window_grace_seconds,
        wanted.load_timeout_seconds,
        wanted.arguments,
        prompts,
    )


def _refuse_variables(environment: Mapping[str, Any]) -> None:
    """Raise ConfigError for a variable that would override an option of the server silently."""
    for name in environment:
        if name.startswith("LLAMA_ARG_"):
            raise ConfigError(f"engine.environment.{name}: it would override sweeper's options; leave it out")
