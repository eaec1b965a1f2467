"""The quantisations of a space. This module makes missing files and measures the quality that each one loses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from sweeper.config import Settings
from sweeper.errors import EngineMissingError, MissingError, ModelFileError, SweeperError, TrialFailed
from sweeper.records import Configuration, Reading
from sweeper.rig.base import Rig
from sweeper.space.space import SearchSpace

NO_QUANTISER = (
    "llama-cpp-python, which makes quantisations, is not installed; name files of your own with model.files"
)


def with_quantisations(
    rig: Rig, space: SearchSpace, root: Path, say: Callable[[str], None]
) -> tuple[Rig, SearchSpace]:
    """The rig with the files of every quantisation of the space, and the space without those that cannot be made.

    Raises:
        ModelFileError, MissingError: no quantisation of the space can be made.
        UsageError: the user asked for a quantisation that is not possible.
    """
    if rig.use_files is None:
        return rig, space
    from sweeper.model.quantise import quantised

    files, notes = dict(rig.model.files), list(rig.notes)
    if not rig.measures_quality:  # what measures quality makes quantisations
        none = {quant: EngineMissingError(NO_QUANTISER) for quant in _quants(space) if quant not in files}
        space = _without(space, none, rig.model.base_quant)
        notes += [f"quant is not searched for {', '.join(none)}: {NO_QUANTISER}"] if none else []
        return replace(rig, notes=tuple(notes)), space
    base = Path(rig.model.files[rig.model.base_quant].path)
    failed: dict[str, SweeperError] = {}
    for quant in _quants(space):
        if quant in files:
            continue
        try:
            made = quantised(base, quant, root)
        except (MissingError, ModelFileError, TrialFailed) as failure:
            failed[quant] = failure
            continue
        if made.made:
            say(f"made {quant} with llama.cpp's quantiser in {made.seconds:.1f} s")
        notes += [f"{quant}: {warning}" for warning in made.warnings]
        files[quant] = replace(made.file, path=str(Path(made.file.path).absolute()))
    rig.use_files({quant: Path(file.path) for quant, file in files.items()})
    space = _without(space, failed, rig.model.base_quant)
    for why in dict.fromkeys(map(str, failed.values())):
        levels = ", ".join(quant for quant, failure in failed.items() if str(failure) == why)
        notes.append(f"quant is not searched for {levels}: {why}")
    return replace(rig, model=replace(rig.model, files=files), notes=tuple(notes)), space


def _without(space: SearchSpace, failed: Mapping[str, SweeperError], base_quant: str) -> SearchSpace:
    if not failed:
        return space
    searched = space.parameters.get("quant")
    left = tuple(quant for quant in searched.values if quant not in failed) if searched else ()
    if searched is None or not left:
        failure = next(iter(failed.values()))
        if isinstance(failure, TrialFailed):
            raise ModelFileError(str(failure), f"set space.quant={base_quant}")
        raise failure
    if len(left) > 1:
        return replace(space, parameters={**space.parameters, "quant": replace(searched, values=left)})
    others = {name: parameter for name, parameter in space.parameters.items() if name != "quant"}
    return replace(space, parameters=others, base=space.base.with_(quant=left[0]))


def _quants(space: SearchSpace) -> tuple[str, ...]:
    searched = space.parameters["quant"].values if "quant" in space.parameters else (space.base.quant,)
    return tuple(str(quant) for quant in searched if quant is not None)


def with_quality(
    rig: Rig,
    space: SearchSpace,
    settings: Settings,
    root: Path,
    held: ExitStack,
    say: Callable[[str], None],
) -> Rig:
    """The rig with the quality loss of each quantisation and cache type. Each is measured once and kept.

    If the space has no parameter that changes quality, this measures nothing. If the most precise file cannot be run,
    the sweep goes on without figures of quality, and a note says so.
    """
    if (
        rig.use_files is None
        or not rig.measures_quality
        or not {"quant", "type_k", "type_v"} & set(space.parameters)
    ):
        return rig
    from sweeper.measure.trial import exactly
    from sweeper.model.quality import QualityMeter

    best = max(rig.model.files.values(), key=lambda file: file.size_bytes)
    layers = rig.model.n_layer + 1 if rig.engine_record.gpu_offload else 0
    text = Path(settings.model.text) if settings.model.text else None
    meter = held.enter_context(
        QualityMeter(Path(best.path), root, text, layers, lambda path: rig.make_room(path, layers))
    )
    say(f"measuring the quality loss against {best.quant}, once; a large model takes minutes")
    try:
        meter.divergence(Path(best.path))
    except TrialFailed as failure:
        return replace(rig, notes=(*rig.notes, f"the quality loss is not measured: {failure}"))
    files = dict(rig.model.files)
    failed: dict[str, TrialFailed] = {}
    for quant in _quants(space):
        try:
            divergence = meter.divergence(Path(files[quant].path)).mean
        except TrialFailed as failure:
            failed[quant] = failure
            say(f"{quant} is ruled out, because its quality loss cannot be measured: {failure}")
        else:
            files[quant] = replace(files[quant], kl_divergence=divergence)
    figures = (f"{quant} {files[quant].kl_divergence:.4f}" for quant in _quants(space) if quant not in failed)
    say(f"quality loss (KL divergence from {best.quant}, nats/token): {', '.join(figures)}")

    def quality(configuration: Configuration) -> Reading | None:
        quant = configuration.quant or rig.model.base_quant
        if quant in failed:
            raise failed[quant]
        found = meter.divergence(Path(files[quant].path), configuration.type_k, configuration.type_v)
        if found.mean == 0:
            return exactly(0.0)
        half = 1.96 * found.standard_error
        return Reading(found.mean, max(0.0, found.mean - half), found.mean + half, found.tokens)

    return replace(rig, model=replace(rig.model, files=files), quality=quality)
