"""Opens the rig of a configuration, and the space that it can search."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweeper.client.prompt_file import bundled_prompts
from sweeper.config import Composed
from sweeper.errors import StoreError
from sweeper.records import Reading
from sweeper.rig.base import Rig
from sweeper.rig.quantisations import with_quantisations
from sweeper.rig.short_job import in_time
from sweeper.search.warm_start import nearest
from sweeper.space.auto import ONE_CONTEXT, Facts, default_configuration, fill_auto, unsettable
from sweeper.space.space import SearchSpace, Traits, build_space
from sweeper.space.speculation import speculates

# The function that opens the rig of each engine, called with the settings, the root, an ExitStack and `say`. The
# engines of the lab are strings and not imports, so that the product does not depend on the lab.
RIGS = {
    "llama_cpp": "sweeper.rig.llama_cpp:llama_rig",
    "llama_server": "sweeper.rig.llama_server:server_rig",
    "endpoint": "sweeper.rig.endpoint:endpoint_rig",
    "simulated": "sweeper.lab.rigs:simulated_rig",
    "replay": "sweeper.lab.rigs:replay_rig",
}
OTHER_TEXTS = (
    "speculation is measured on sweeper's own texts; other texts make a model accept more drafts or fewer, so "
    "workload.prompts=FILE measures it on your own prompts"
)
# This gives a mean of the power at rest even from sensors that refresh once a second.
IDLE_SECONDS = 2.0


def open_rig(
    composed: Composed, held: ExitStack, say: Callable[[str], None]
) -> tuple[Rig, SearchSpace, tuple[str, ...]]:
    """The rig with the files of every quantisation, the space, and notes on the space."""
    settings = composed.settings
    root = Path(settings.root)
    try:
        (root / "journal").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write in {root}: {error.strerror}; choose another root=…") from error
    module, name = RIGS[settings.engine.name].split(":")
    rig: Rig = getattr(importlib.import_module(module), name)(settings, root, held, say)
    if rig.space is not None:
        return rig, rig.space, ()
    facts = Facts(
        rig.machine,
        rig.model,
        settings.workload_record(),
        rig.engine_record.gpu_offload,
        rig.limits.ranges(),
        {name: str(error) for name, error in rig.limits.refusals().items()},
        rig.quants,
        rig.engine_record.name,
        rig.options,
        rig.measures_quality,
        rig.running,
        longest_context="n_ctx" in settings.objectives.targets,
        speculation=rig.speculation,
    )
    space, notes = space_of(composed, facts)
    if rig.use_texts is not None and speculates(space):
        texts = bundled_prompts()
        rig.use_texts(texts.prompts)
        rig = replace(rig, workload=replace(facts.workload, prompts=texts.record))
        notes = (*notes, OTHER_TEXTS)
    space, in_short = in_time(rig, space, composed)  # before files are made that are not searched
    notes = (*notes, *in_short)
    rig, space = with_quantisations(rig, space, root, say)
    if rig.own_placement is not None:
        space = with_own_placement(space, rig.own_placement(space.base))
    return rig, space, notes


def space_of(composed: Composed, facts: Facts) -> tuple[SearchSpace, tuple[str, ...]]:
    """The space that this machine can search, and notes on what it cannot."""
    spec, notes = fill_auto(composed.space(facts.words(), skip=tuple(unsettable(facts))), facts)
    traits = Traits(
        n_layer=facts.model.n_layer,
        gpu_offload=facts.gpu_offload,
        prompt_tokens=facts.workload.prompt_tokens,
        # A running server has the context that it has; its rig checked whether the workload fits.
        n_ctx_needed=0 if facts.running else facts.workload.n_ctx_needed,
        n_ctx_train=facts.model.n_ctx_train,
        quants=facts.quants,
        has_experts=facts.model.expert_count > 0,
        gpus=facts.gpus,
        engine=facts.engine,
        fills_context=facts.workload.depth is None,
    )
    space = build_space(spec, default_configuration(facts), traits)
    if facts.longest_context and facts.running is None and "n_ctx" not in space.parameters:
        notes = (*notes, ONE_CONTEXT.format(space.base.n_ctx))
    return space, notes


def with_own_placement(space: SearchSpace, placement: Mapping[str, Any]) -> SearchSpace:
    """The space with the engine's own placement as its base. The point of the base runs with `fit`.

    So the baseline is what the user has without sweeper, and the search knows where it lies.
    """
    space = replace(space, base=space.base.with_(**placement))
    point = {p.name: nearest(p.values, getattr(space.base, p.name)) for p in space.parameters.values()}
    return replace(space, own_placement=space.configuration(point))


def idle_power(rig: Rig) -> Reading | None:
    """The power of the machine at rest, before a load; None if the meter has no reading."""
    from sweeper.measure.trial import exactly

    with rig.meter.window() as window:
        started = rig.clock()
        rig.sleep(max(IDLE_SECONDS, 10 * rig.meter.update_period_seconds))
        ended = rig.clock()
    watts = window.reading(started, ended).watts
    return None if watts is None else exactly(watts)
