"""The quantisations of a space. This module makes missing files and measures the quality that each one loses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from sweeper.config import Settings
from sweeper.records import Configuration, Reading
from sweeper.rig.base import Rig
from sweeper.space.space import SearchSpace


def with_quantisations(rig: Rig, space: SearchSpace, root: Path, say: Callable[[str], None]) -> Rig:
    """The rig with the files of every quantisation of the space."""
    if rig.use_files is None:
        return rig
    from sweeper.model.quantise import quantised

    files, notes = dict(rig.model.files), list(rig.notes)
    base = Path(rig.model.files[rig.model.base_quant].path)
    for quant in _quants(space):
        if quant in files:
            continue
        made = quantised(base, quant, root)
        if made.made:
            say(f"made {quant} with llama.cpp's quantiser in {made.seconds:.1f} s")
        notes += [f"{quant}: {warning}" for warning in made.warnings]
        files[quant] = replace(made.file, path=str(Path(made.file.path).resolve()))
    rig.use_files({quant: Path(file.path) for quant, file in files.items()})
    return replace(rig, model=replace(rig.model, files=files), notes=tuple(notes))


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

    If the space has no parameter that changes quality, this measures nothing.
    """
    if rig.use_files is None or not {"quant", "type_k", "type_v"} & set(space.parameters):
        return rig
    from sweeper.measure.trial import exactly
    from sweeper.model.quality import QualityMeter

    best = max(rig.model.files.values(), key=lambda file: file.size_bytes)
    layers = rig.model.n_layer + 1 if rig.engine_record.gpu_offload else 0
    text = Path(settings.model.text) if settings.model.text else None
    meter = held.enter_context(QualityMeter(Path(best.path), root, text, n_gpu_layers=layers))

    def quality(configuration: Configuration) -> Reading | None:
        file = rig.model.file(configuration.quant)
        found = meter.divergence(Path(file.path), configuration.type_k, configuration.type_v)
        if found.mean == 0:
            return exactly(0.0)
        half = 1.96 * found.standard_error
        return Reading(found.mean, max(0.0, found.mean - half), found.mean + half, found.tokens)

    files = dict(rig.model.files)
    for quant in _quants(space):
        divergence = meter.divergence(Path(files[quant].path)).mean
        files[quant] = replace(files[quant], kl_divergence=divergence)
    figures = ", ".join(f"{quant} {files[quant].kl_divergence:.4f}" for quant in _quants(space))
    say(f"quality loss (KL divergence from {best.quant}, nats/token): {figures}")
    return replace(rig, model=replace(rig.model, files=files), quality=quality)
