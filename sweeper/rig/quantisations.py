"""The quantisations of a space. This module makes missing files, and measures quality when a trial first needs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from sweeper.config import Settings
from sweeper.errors import (
    EngineMissingError,
    MissingError,
    ModelFileError,
    QualityUnknown,
    SweeperError,
    TrialFailed,
)
from sweeper.measure.trial import exactly
from sweeper.model.quality import Divergence, Effort, Meter, QualityMeter
from sweeper.model.texts import texts_of
from sweeper.parameters import LOSSY_KEYS
from sweeper.records import Configuration, ModelFile, ModelRecord, Reading
from sweeper.rig.base import Rig
from sweeper.space.space import SearchSpace

Level = tuple[str, str, str]  # a quantisation, and the types of the K and of the V cache
REFERENCE_CACHE = ("f16", "f16")
# The reference differs from itself in nothing, by definition.
NOTHING_LOST = Divergence(0.0, 0.0, 0.0, 100.0, 100.0, 100.0, 0)
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
    return with_values(space, "quant", left)


def with_values(space: SearchSpace, name: str, values: tuple[Any, ...]) -> SearchSpace:
    """The space in which the searched parameter ``name`` has only these values; a single one is fixed."""
    if len(values) > 1:
        parameter = replace(space.parameters[name], values=values)
        return replace(space, parameters={**space.parameters, name: parameter})
    others = {other: parameter for other, parameter in space.parameters.items() if other != name}
    return replace(space, parameters=others, base=space.base.with_(**{name: values[0]}))


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
    """The rig with the quality loss of each level, which is measured when it is first asked for, and then kept.

    Nothing is measured here. If the space has no parameter that changes quality, the rig stays as it is. If the
    reference cannot be run, `Rig.quality` raises QualityUnknown for every level that was not measured before.
    """
    compare = comparison(rig, space, settings, root, say)
    if compare is None:
        return rig
    held.enter_context(compare.meter)
    texts = texts_of(settings.model.text)
    return replace(
        rig,
        quality=lambda configuration: _readings(compare(compare.level_of(configuration))),
        quality_is_known=lambda configuration: compare.is_known(compare.level_of(configuration)),
        quality_record=(
            f"against {compare.reference.quant} on {texts.name} ({texts.sha256()[:12]}), by {compare.meter.program}"
        ),
    )


def with_quality_of_files(rig: Rig, space: SearchSpace) -> Rig:
    """The rig whose model record has the quality loss of each file of the space, as far as it can be measured.

    A recorded table needs these figures: nothing can be measured when it is replayed.
    """
    files = dict(rig.model.files)
    type_k, type_v = REFERENCE_CACHE
    for quant in _quants(space):
        try:
            loss = rig.quality(space.base.with_(quant=quant, type_k=type_k, type_v=type_v))
        except (QualityUnknown, TrialFailed):
            continue  # the comparison said so
        if "kl_divergence" in loss:
            files[quant] = replace(files[quant], kl_divergence=loss["kl_divergence"].median)
    return replace(rig, model=replace(rig.model, files=files))


def comparison(
    rig: Rig, space: SearchSpace, settings: Settings, root: Path, say: Callable[[str], None]
) -> Comparison | None:
    """Compares the levels of ``space``; None if they all have the same quality, or if nothing here can measure it."""
    if rig.use_files is None or not rig.measures_quality or not set(LOSSY_KEYS) & set(space.parameters):
        return None
    effort = _effort(settings, space)
    layers = rig.model.n_layer + 1 if rig.engine_record.gpu_offload else 0
    reference = Path(most_precise(rig.model).path)
    meter = (rig.quality_meter or QualityMeter)(
        reference, root, texts_of(settings.model.text), layers, partial(_make_room, rig, layers), effort
    )
    return Comparison(meter, rig.model, effort, say)


def most_precise(model: ModelRecord) -> ModelFile:
    """The largest file, with which the others are compared."""
    return max(model.files.values(), key=lambda file: file.size_bytes)


@dataclass(slots=True)
class Comparison:
    """Compares levels with the reference, each when it is first asked for, and says what each comparison cost.

    The reference is the most precise file with an f16 cache. Its own loss is 0 without a comparison.
    """

    meter: Meter
    model: ModelRecord
    effort: Effort
    say: Callable[[str], None]
    _answers: dict[Level, Divergence | TrialFailed] = field(default_factory=dict)
    _has_begun: bool = False
    _unknown: str | None = None  # why the reference cannot be run

    @property
    def reference(self) -> ModelFile:
        """The file that the others are compared with."""
        return most_precise(self.model)

    def level_of(self, configuration: Configuration) -> Level:
        """The level at which this configuration runs."""
        return configuration.quant or self.model.base_quant, configuration.type_k, configuration.type_v

    def is_known(self, level: Level) -> bool:
        """Whether the loss of this level is known without running a model."""
        if level == (self.reference.quant, *REFERENCE_CACHE):
            return True
        quant, *cache = level
        return quant in self.model.files and self.meter.is_kept(Path(self.model.files[quant].path), *cache)

    def __call__(self, level: Level) -> Divergence:
        """The loss of this level.

        Raises:
            QualityUnknown: the reference cannot be run.
            TrialFailed: this level cannot be compared. It is not tried again.
            SweeperError: as `QualityMeter.divergence`.
        """
        if level == (self.reference.quant, *REFERENCE_CACHE):
            return NOTHING_LOST
        if level not in self._answers:
            self._answers[level] = self._compared(level)
        answer = self._answers[level]
        if isinstance(answer, TrialFailed):
            raise answer
        return answer

    def _compared(self, level: Level) -> Divergence | TrialFailed:
        quant, *cache = level
        name = quant if tuple(cache) == REFERENCE_CACHE else "{} with type_k={} type_v={}".format(*level)
        if not self.is_known(level):
            self._demand_reference()
        before = self.meter.spent_seconds
        try:
            found = self.meter.divergence(Path(self.model.files[quant].path), *cache)
        except TrialFailed as failure:
            self.say(f"{name} is left out, because its quality loss cannot be measured: {failure}")
            return failure
        seconds = self.meter.spent_seconds - before
        cost = _seconds(seconds) if seconds > 0 else "kept from an earlier measurement"
        self.say(
            f"quality of {name} over {found.tokens:,} tokens: KL divergence {found.mean:.4f} nats/token, same most "
            f"likely token {found.agreement:.1f} %; {cost}{self._doubt(found)}"
        )
        return found

    def _demand_reference(self) -> None:
        """Run the reference once, so that its failure is not taken for one of the level that needs it."""
        if not self._has_begun:
            self._has_begun = True
            reference, allowed = self.reference, _seconds(self.effort.seconds)
            self.say(
                f"measuring the quality loss against {reference.quant} … (once: {self.effort.tokens:,} tokens with "
                f"each file and cache type, or as many as {allowed} allow)"
            )
            before = self.meter.spent_seconds
            try:
                found = self.meter.divergence(Path(reference.path))
            except TrialFailed as failure:
                self._unknown = str(failure)
                self.say(f"the quality loss is not measured, and the sweep goes on without it: {failure}")
            else:
                if (seconds := self.meter.spent_seconds - before) > 0:  # else it was kept
                    self.say(f"{reference.quant} itself over {found.tokens:,} tokens: {_seconds(seconds)}")
        if self._unknown is not None:
            raise QualityUnknown(self._unknown)

    def _doubt(self, found: Divergence) -> str:
        if self.effort.decides(found):
            return ""
        return f"; its KL divergence of {found.low:.4f} to {found.high:.4f} may be on either side of your constraint"


def _effort(settings: Settings, space: SearchSpace) -> Effort:
    """The text and the time of each comparison. The reference has the same time as each candidate."""
    choices = (len(space.parameters[name].values) for name in LOSSY_KEYS if name in space.parameters)
    bounds = tuple(c.bound for c in settings.constraint_records() if c.metric == "kl_divergence")
    seconds = settings.quality_seconds() / math.prod(choices)
    return Effort(settings.model.quality_tokens, seconds, bounds, takes_kept=settings.is_short())


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
