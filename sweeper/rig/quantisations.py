"""The quantisations of a space. This module makes missing files and measures the quality that each one loses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sweeper.config import Settings
from sweeper.errors import EngineMissingError, MissingError, ModelFileError, SweeperError, TrialFailed
from sweeper.measure.trial import exactly
from sweeper.model.quality import Divergence, Effort, Meter, QualityMeter
from sweeper.model.texts import texts_of
from sweeper.parameters import LOSSY_KEYS
from sweeper.records import Configuration, ModelFile, Reading
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
    from sweeper.model.quantise import is_made, quantised

    files, notes = dict(rig.model.files), list(rig.notes)
    if not rig.makes_quantisations:
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
            if not is_made(base, quant, root):
                say(f"making {quant} with llama.cpp's quantiser … (once; a large model takes minutes)")
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
    if rig.use_files is None or not rig.measures_quality or not set(LOSSY_KEYS) & set(space.parameters):
        return rig
    best = max(rig.model.files.values(), key=lambda file: file.size_bytes)
    texts, effort = texts_of(settings.model.text), _effort(settings, space)
    layers = rig.model.n_layer + 1 if rig.engine_record.gpu_offload else 0
    room = partial(_make_room, rig, layers)
    meter = held.enter_context(
        (rig.quality_meter or QualityMeter)(Path(best.path), root, texts, layers, room, effort)
    )
    say(
        f"measuring the quality loss against {best.quant} … (once: {effort.tokens:,} tokens with each file and cache "
        f"type, or as many as {_seconds(effort.seconds)} allow)"
    )
    compare = _Comparison(meter, rig.model.files, effort, say)
    try:
        compare(best.quant)
    except TrialFailed as failure:
        return replace(rig, notes=(*rig.notes, f"the quality loss is not measured: {failure}"))
    files = dict(rig.model.files)
    failed: dict[str, TrialFailed] = {}
    figures = []
    for quant in _quants(space):
        try:
            found = compare(quant)
        except TrialFailed as failure:
            failed[quant] = failure
            say(f"{quant} is left out, because its quality loss cannot be measured: {failure}")
        else:
            files[quant] = replace(files[quant], kl_divergence=found.mean)
            figures.append(f"{quant} {found.mean:.4f} ({found.agreement:.1f} %)")
    say(
        f"quality loss (KL divergence from {best.quant} in nats/token, and how often the most likely token is the "
        f"same): {', '.join(figures)}"
    )

    def quality(configuration: Configuration) -> dict[str, Reading]:
        quant = configuration.quant or rig.model.base_quant
        if quant in failed:
            raise failed[quant]
        return _readings(compare(quant, configuration.type_k, configuration.type_v))

    record = f"against {best.quant} on {texts.name} ({texts.sha256()[:12]}), by {meter.program}"
    return replace(rig, model=replace(rig.model, files=files), quality=quality, quality_record=record)


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Compares files and cache types with the reference, and says what each comparison cost."""

    meter: Meter
    files: Mapping[str, ModelFile]
    effort: Effort
    say: Callable[[str], None]

    def __call__(self, quant: str, type_k: str = "f16", type_v: str = "f16") -> Divergence:
        """The divergence of this quantisation with these cache types. Raises as `QualityMeter.divergence`."""
        before = self.meter.spent_seconds
        found = self.meter.divergence(Path(self.files[quant].path), type_k, type_v)
        seconds = self.meter.spent_seconds - before
        if seconds > 0:  # else it was kept
            cache = "" if type_k == type_v == "f16" else f" with type_k={type_k} type_v={type_v}"
            self.say(
                f"quality of {quant}{cache} over {found.tokens:,} tokens: {_seconds(seconds)}{self._doubt(found)}"
            )
        return found

    def _doubt(self, found: Divergence) -> str:
        if self.effort.decides(found):
            return ""
        return f"; its KL divergence of {found.low:.4f} to {found.high:.4f} may be on either side of your constraint"


def _effort(settings: Settings, space: SearchSpace) -> Effort:
    """The text and the time of each comparison. The reference has the same time as each candidate."""
    choices = (len(space.parameters[name].values) for name in LOSSY_KEYS if name in space.parameters)
    bounds = tuple(c.bound for c in settings.constraint_records() if c.metric == "kl_divergence")
    return Effort(settings.model.quality_tokens, settings.quality_seconds() / math.prod(choices), bounds)


def _make_room(rig: Rig, n_gpu_layers: int, path: Path) -> None:
    rig.make_room(path, n_gpu_layers)


def _readings(found: Divergence) -> dict[str, Reading]:
    """The metrics of a divergence. Those of the reference are known exactly."""
    if found.high == 0:
        return {"kl_divergence": exactly(0.0), "top_token_agreement_percent": exactly(100.0)}
    divergence = Reading(found.mean, found.low, found.high, found.tokens)
    agreement = Reading(found.agreement, found.agreement_low, found.agreement_high, found.tokens)
    return {"kl_divergence": divergence, "top_token_agreement_percent": agreement}


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
