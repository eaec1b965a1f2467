"""Guesses for one or several models: it puts fit, ceiling, speed, watts and the first configuration together."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import psutil

from sweeper import machine
from sweeper.config import Composed
from sweeper.errors import EngineCrashed, EngineRefused, EngineTimeout, SweeperError
from sweeper.guess import gpu
from sweeper.guess.earlier import earlier_sweeps, speed_before, watts_before
from sweeper.guess.fit import fit, most_layers_that_fit
from sweeper.guess.locate import Located, locate
from sweeper.guess.records import Figure, Guess
from sweeper.guess.text import block
from sweeper.guess.traffic import (
    BARE_EXPECTED,
    BARE_HIGH,
    BARE_LOW,
    HIGH_FACTOR,
    LOW_FACTOR,
    Traffic,
    ceiling_tokens_per_second,
    kernels_wanted,
    seconds_per_token,
    traffic,
)
from sweeper.guess.watts import estimated_watts
from sweeper.model.forecast import Forecaster, KernelSpeeds
from sweeper.model.header import GgufHeader, read_header
from sweeper.model.kernel_speed import MOST_BYTES
from sweeper.nvml import cuda_variables
from sweeper.records import Configuration, MachineRecord, ModelFile, ModelRecord, SweepRecord, Workload
from sweeper.results.ceiling import MOST_CACHED_BYTES
from sweeper.rig.base import Rig
from sweeper.rig.open import space_of
from sweeper.space.auto import Facts

NOT_INSTALLED = "llama-cpp-python is not installed"
# The failures of llama.cpp's worker that leave a guess to arithmetic.
_FAILURES = (EngineRefused, EngineCrashed, EngineTimeout)
HERE = ("llama_cpp", "llama_server")  # the engines that run on this machine
DEFAULT_ROOT = Path("mlruns")
# Programs that take more than this share of the processors slow every figure down.
BUSY_SHARE = 0.25
# So much more of the memory's speed one thread may get once they are closed: 1.4 to 1.6 were measured.
BUSY_FACTOR = 1.5
LOOK_SECONDS = 0.1
FULL_DEPTH = "tokens_per_second_at_full_depth"


@dataclass(frozen=True, slots=True)
class _Asked:
    """The kernels of a benchmark, its threads and its type of cache."""

    wanted: tuple[tuple[str, int, int], ...]
    threads: int
    cache_type: str


@dataclass
class Here:
    """The machine, with figures that several guesses share. They are found at first use."""

    root: Path
    machine: MachineRecord
    forecaster: Forecaster | None
    gpu_offload: bool
    others_share: float = 0.0  # of the processors, taken by other programs just now
    without: str = NOT_INSTALLED  # why there is no forecaster
    _speeds: dict[_Asked, KernelSpeeds | str] = field(default_factory=dict)

    @cached_property
    def sweeps(self) -> tuple[SweepRecord, ...]:
        """Earlier sweeps on this machine."""
        return earlier_sweeps(self.root, self.machine)

    @cached_property
    def gb_per_second(self) -> float:
        """The bandwidth of the host's memory."""
        known = self.machine.memory_bandwidth_gb_per_second
        return machine.measure_bandwidth_gb_per_second() if known is None else known

    @property
    def is_busy(self) -> bool:
        """Whether other programs slow every figure down."""
        return self.others_share > BUSY_SHARE

    @property
    def best_gb_per_second(self) -> float:
        """The bandwidth of the host's memory, or the speed of a kernel that read more from it just now.

        On a busy machine, it is what the memory may reach without the other programs.
        """
        read = [
            speed
            for key, found in self._speeds.items()
            if isinstance(found, KernelSpeeds)
            for (_, _, total), speed in zip(key.wanted, found.weight_bytes_per_second, strict=True)
            if total >= MOST_BYTES
        ]
        best = max(self.gb_per_second, *(speed / 1e9 for speed in read), 0.0)
        return best * BUSY_FACTOR if self.is_busy else best

    @cached_property
    def card_gb_per_second(self) -> float | None:
        """The bandwidth of the first visible card's memory; None if it is not known."""
        card = next((card for card in self.machine.gpus if card.visible), None)
        return None if card is None else gpu.card_gb_per_second(card.uuid)

    def disturbs(self, configuration: Configuration) -> bool:
        """Whether other programs keep threads waiting for each other, which one thread alone need not do."""
        return self.is_busy and configuration.n_threads > 1

    def speeds(self, work: Traffic, configuration: Configuration) -> KernelSpeeds | str:
        """The speed of the kernels that a model needs, or the reason why it is not known."""
        if self.forecaster is None:
            return self.without
        wanted = kernels_wanted(work)
        key = _Asked(tuple(wanted), configuration.n_threads, configuration.type_k)
        if key not in self._speeds:
            try:
                found = self.forecaster.kernel_speeds(wanted, configuration.n_threads, configuration.type_k)
                if self.disturbs(configuration):
                    found = found.at_least(self.forecaster.kernel_speeds(wanted, 1, configuration.type_k))
                self._speeds[key] = found
            except _FAILURES as failure:
                self._speeds[key] = str(failure)
        return self._speeds[key]


def guess_models(models: Sequence[str], overrides: Sequence[str], root: Path) -> tuple[Guess, ...]:
    """A guess for each model; without models, for that of the configuration.

    Args:
        models: names in conf/model, GGUF files, ``OWNER/NAME/FILE.gguf`` on the hub, or URLs.
        overrides: ``KEY=VALUE`` words, as for `sweep`.
        root: the folder of earlier sweeps.

    Raises:
        UsageError, ConfigError, ModelFileError: a word is wrong.
        ModelMissingError: a file is not there, or cannot be reached.
    """
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="sweeper-guess-")))
        words = [*overrides, *([] if root == DEFAULT_ROOT else [f"root={root}"])]
        located = [locate(model, words, folder) for model in (models or (None,))]
        settings = located[0].composed.settings
        held.enter_context(cuda_variables(settings.engine.environment))
        here = held.enter_context(look_around(Path(settings.root), settings.engine.environment))
        for one in located if len(located) > 1 else ():  # so that one bandwidth holds for all of them
            first = first_configuration(here, one.composed, one.header, settings.workload_record())
            here.speeds(traffic(one.header), first)
        return tuple(guess(here, one) for one in located)


class look_around:  # noqa: N801 - a context manager, used like a function
    """The machine with llama.cpp's planner, if llama-cpp-python is installed. The planner ends with the context."""

    def __init__(self, root: Path, environment: dict[str, str], known: MachineRecord | None = None) -> None:
        self._root, self._environment, self._known = root, environment, known
        self._held = ExitStack()

    def __enter__(self) -> Here:
        forecaster, offload, without = None, False, NOT_INSTALLED
        if importlib.util.find_spec("llama_cpp") is not None:
            forecaster = self._held.enter_context(Forecaster(self._environment))
            try:
                offload = forecaster.can_offload()
            except _FAILURES as failure:
                forecaster, without = None, str(failure)
        others = psutil.cpu_percent(LOOK_SECONDS) / 100
        return Here(self._root, self._known or machine.examine(), forecaster, offload, others, without)

    def __exit__(self, *_: object) -> None:
        self._held.close()


def guess(here: Here, located: Located, configuration: Configuration | None = None) -> Guess:
    """The guess for one model. Without a configuration, for the one that a sweep would measure first."""
    header, settings = located.header, located.composed.settings
    workload = settings.workload_record()
    work = traffic(header)
    configuration = configuration or first_configuration(here, located.composed, header, workload)
    found = fit(header, work, configuration, here.forecaster or here.without)
    notes: list[str] = []
    if not found.fits and configuration.n_gpu_layers > 0 and here.forecaster is not None:
        part = most_layers_that_fit(header, work, configuration, here.forecaster or here.without)
        if part is not None:
            configuration, found = part
            notes.append(
                f"with all layers on the GPU it does not fit; with {configuration.n_gpu_layers} of "
                f"{header.n_layer + 1} it does"
            )
    depth = deepest(workload, configuration)
    if header.expert_count:
        notes.append(
            f"a token uses {header.expert_used_count} of {header.expert_count} experts, so it reads "
            f"{work.total_bytes / 2**20:.0f} MiB of {header.size_bytes / 2**20:.0f}"
        )
    speed = deep = None
    if found.fits:
        speed, deep = _speeds(here, header, work, configuration, workload)
    ceilings, why = _ceilings(here, work, configuration, depth, header)
    if not _share_on_card(here, header, configuration) and work.total_bytes < MOST_CACHED_BYTES:
        notes.append(
            "a model this small lies partly in the processor's caches, which are faster than memory: it may be faster "
            "than its ceiling"
        )
    if here.is_busy:
        notes.append(
            f"other programs use {here.others_share:.0%} of the processors, so the computed speeds may be too low: "
            "close them and guess again"
        )
    return Guess(
        model=located.name,
        architecture=header.architecture,
        parameters=header.parameters,
        quant=header.file_type,
        size_bytes=header.size_bytes,
        fit=found,
        depth=depth,
        ceiling_tokens_per_second=ceilings[0],
        ceiling_tokens_per_second_at_depth=ceilings[1],
        ceiling_reason=why,
        tokens_per_second=speed,
        tokens_per_second_at_depth=deep,
        watts=watts_before(here.sweeps, configuration, header.n_layer)
        or estimated_watts(here.machine, configuration, settings.power.estimate),
        configuration=configuration,
        command=located.command,
        notes=tuple(notes),
    )


def first_answer(
    rig: Rig, configuration: Configuration, composed: Composed, say: Callable[[str], None]
) -> None:
    """Say what a sweep's baseline should do, before the sweep has measured anything.

    It says nothing of engines whose speed this machine's kernels do not decide: simulated, replayed or elsewhere.
    """
    settings = composed.settings
    if rig.load is None or settings.engine.name not in HERE:
        return
    try:
        header = read_header(Path(rig.model.file(configuration.quant).path))
        located = Located(rig.model.name, header, composed, "")
        with look_around(Path(settings.root), settings.engine.environment, rig.machine) as here:
            lines = block(guess(here, located, configuration))
    except SweeperError as error:  # the sweep itself goes on
        say(f"no first guess: {error}")
        return
    for line in lines:
        say(line)


def deepest(workload: Workload, configuration: Configuration) -> int:
    """The depth in tokens at which the context is full, or that of the workload if that is deeper."""
    return workload.full_depth(configuration.n_ctx) or workload.depth_at(configuration.n_ctx)


def _speeds(
    here: Here, header: GgufHeader, work: Traffic, configuration: Configuration, workload: Workload
) -> tuple[Figure | None, Figure | None]:
    """The decode speeds with an empty context and at the deepest: from earlier sweeps, or else computed."""
    empty = speed_before(here.sweeps, header, configuration, workload) if workload.depth == 0 else None
    deep = speed_before(here.sweeps, header, configuration, workload, FULL_DEPTH)
    depth, on_average = deepest(workload, configuration), workload.generated_tokens // 2  # it grows meanwhile
    return (
        empty or computed_speed(here, work, header, configuration, on_average),
        deep or computed_speed(here, work, header, configuration, depth + on_average),
    )


def first_configuration(
    here: Here, composed: Composed, header: GgufHeader, workload: Workload
) -> Configuration:
    """The configuration that a sweep measures first: llama.cpp's defaults, and the values that the user fixed."""
    file = ModelFile(header.file_type, str(header.path), "", header.size_bytes)
    model = ModelRecord(
        name=header.path.stem,
        architecture=header.architecture,
        parameters=header.parameters,
        n_layer=header.n_layer,
        n_ctx_train=header.n_ctx_train,
        source="file",
        base_quant=header.file_type,
        files={header.file_type: file},
        expert_count=header.expert_count,
    )
    longest = "n_ctx" in composed.settings.objectives.targets
    facts = Facts(here.machine, model, workload, here.gpu_offload, longest_context=longest)
    space, _ = space_of(composed, facts)
    return space.base


def _share_on_card(here: Here, header: GgufHeader, configuration: Configuration) -> float:
    if not here.gpu_offload:
        return 0.0
    layers = configuration.n_gpu_layers
    return 1.0 if layers < 0 else min(1.0, layers / (header.n_layer + 1))


def _ceilings(
    here: Here, work: Traffic, configuration: Configuration, depth: int, header: GgufHeader
) -> tuple[tuple[float | None, float | None], str]:
    """The ceilings at an empty context and at ``depth``, and where they come from."""
    on_card = _share_on_card(here, header, configuration)
    if on_card and here.card_gb_per_second is None:
        return (None, None), "the card's memory bandwidth is not known"

    def at(depth: int) -> float:
        host = (1 - on_card) / ceiling_tokens_per_second(work, depth, configuration, here.best_gb_per_second)
        card = here.card_gb_per_second
        return 1 / (
            host + (on_card / ceiling_tokens_per_second(work, depth, configuration, card) if card else 0)
        )

    bandwidth = here.best_gb_per_second
    why = f"memory bandwidth of the host: {bandwidth:.1f} GB/s, measured just now"
    if on_card:
        why = f"memory bandwidth of the card by its data sheet: {here.card_gb_per_second:.0f} GB/s"
    elif here.is_busy:
        why = (
            f"memory bandwidth of the host: {bandwidth:.1f} GB/s, which is {BUSY_FACTOR:g} times what was measured "
            "just now beside other programs"
        )
    return (at(0), at(depth)), why


def computed_speed(
    here: Here, work: Traffic, header: GgufHeader, configuration: Configuration, depth: int
) -> Figure | None:
    """The computed decode speed in tok/s at ``depth``; None if a card does the work and its bandwidth is not known."""
    on_card = _share_on_card(here, header, configuration)
    low = expected = high = 0.0  # seconds: low is the fastest
    reasons = []
    if on_card < 1:
        host = host_seconds(here, work, configuration, depth)
        low, expected, high = ((1 - on_card) * seconds for seconds in host[0])
        reasons.append(host[1])
    if on_card:
        if here.card_gb_per_second is None:
            return None
        card = 1 / ceiling_tokens_per_second(work, depth, configuration, here.card_gb_per_second)
        low += on_card * (card / gpu.HIGH_SHARE + work.steps * gpu.STEP_LOW_SECONDS)
        expected += on_card * (card / gpu.EXPECTED_SHARE + work.steps * gpu.STEP_SECONDS)
        high += on_card * (card / gpu.LOW_SHARE + work.steps * gpu.STEP_HIGH_SECONDS)
        reasons.append("from the card's data sheet, of which kernels reach 40 to 95 %")
    return Figure(1 / high, 1 / expected, 1 / low, "computed", "; ".join(reasons))


def host_seconds(
    here: Here, work: Traffic, configuration: Configuration, depth: int
) -> tuple[tuple[float, float, float], str]:
    """The least, expected and most seconds of a token on the processor, and where they come from."""
    speeds = here.speeds(work, configuration)
    if isinstance(speeds, str):
        bare = 1 / ceiling_tokens_per_second(work, depth, configuration, here.best_gb_per_second)
        return (
            (bare / BARE_HIGH, bare / BARE_EXPECTED, bare / BARE_LOW),
            f"from memory bandwidth alone, because {speeds}: kernels reach 20 to 100 % of it",
        )
    expected = seconds_per_token(work, speeds, depth)
    # No thread makes the memory faster; only caches do.
    least = 0.0
    if work.total_bytes >= MOST_CACHED_BYTES:
        least = 1 / ceiling_tokens_per_second(work, depth, configuration, here.best_gb_per_second)
        expected = max(expected, least)
    if here.disturbs(configuration):
        return (
            (max(least, expected / HIGH_FACTOR / configuration.n_threads), expected, expected / LOW_FACTOR),
            f"from the speed of llama.cpp's kernels; other programs disturb the {configuration.n_threads} threads, so "
            "the range reaches from one undisturbed thread to all of them",
        )
    if here.is_busy:
        return (
            (max(least, expected / HIGH_FACTOR / BUSY_FACTOR), expected, expected / LOW_FACTOR),
            "from the speed of llama.cpp's kernels with 1 thread; other programs use the memory too, so the real speed "
            "may be higher",
        )
    threads = "1 thread" if configuration.n_threads == 1 else f"{configuration.n_threads} threads"
    return (
        (max(least, expected / HIGH_FACTOR), expected, expected / LOW_FACTOR),
        f"from the speed of llama.cpp's kernels with {threads}, tried for less than a "
        f"second; −{1 - LOW_FACTOR:.0%} to +{HIGH_FACTOR - 1:.0%}, because memory speed varies with time",
    )
