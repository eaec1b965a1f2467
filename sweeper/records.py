"""The records that cross sweeper's modules: frozen dataclasses with units in their names.

A missing reading is None with a reason, never 0. sweeper compares times in ``time.monotonic()`` seconds (on Linux, all
processes share this clock), and stores times as UTC in ISO 8601.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, TypeVar

import cattrs

from sweeper.metrics import Direction as Direction
from sweeper.metrics import Phase as Phase
from sweeper.parameters import Configuration as Configuration

T = TypeVar("T")

SCHEMA = 1
# The key of a record's `config` that holds the overrides of the command line, as words.
TYPED = "typed"

Scope = Literal["gpu", "module", "package", "psys", "battery", "wall", "custom", "simulated"]
Kind = Literal["measured", "estimated", "mixed", "simulated", "none"]
TrialState = Literal["complete", "failed", "out_of_memory", "infeasible", "dominated", "interrupted"]


@dataclass(frozen=True, slots=True)
class PromptFile:
    """A file of the user's own prompts. The record never holds a prompt's text."""

    name: str  # without its folder
    sha256: str
    prompts: int  # usable lines
    chats: int  # of these, lines with messages
    skipped: int = 0  # lines without text to send: empty prompts, or images alone


@dataclass(frozen=True, slots=True)
class Workload:
    """The work of a trial, in llama.cpp's own terms: ``pp`` (prefill) and ``tg`` (decode) at a context depth.

    ``depth`` is the number of tokens already in the context when a window starts; None means as deep as
    ``n_ctx`` allows. The user sets minimum window lengths; the sensor may need longer windows.
    """

    name: str = "chat"
    prompt_tokens: int = 512
    generated_tokens: int = 128
    depth: int | None = 0
    warmup_seconds: float = 30.0  # at most; it ends as soon as the speed is steady
    screening_seconds: float = 5.0
    screening_repeats: int = 3
    final_seconds: float = 20.0
    final_repeats: int = 10
    n_ctx: int = 0  # the context that the user wants, in tokens, even if a window fills less
    users: int = 1  # how many clients send requests at the same time
    prompts: PromptFile | None = None  # the user's own prompts, which have lengths of their own

    @property
    def n_ctx_needed(self) -> int:
        """The smallest context, in tokens, that is large enough for this workload."""
        return max(self.n_ctx, (self.depth or 0) + self.prompt_tokens + self.generated_tokens)

    def depth_at(self, n_ctx: int) -> int:
        """The depth, in tokens, of a measurement in a context of ``n_ctx``."""
        if self.depth is not None:
            return self.depth
        return max(0, n_ctx - self.prompt_tokens - self.generated_tokens)

    def full_depth(self, n_ctx: int) -> int | None:
        """The depth, in tokens, at which one request still fits a context of ``n_ctx``; None if windows run there."""
        full = n_ctx - self.prompt_tokens - self.generated_tokens
        return full if full > self.depth_at(n_ctx) else None


@dataclass(frozen=True, slots=True)
class Objective:
    """A metric to be maximised or minimised."""

    metric: str
    direction: Direction


@dataclass(frozen=True, slots=True)
class Constraint:
    """A bound on a metric of the outcome: ``metric op bound``."""

    metric: str
    op: Literal["<=", ">="]
    bound: float

    def violation(self, value: float) -> float:
        """How far ``value`` is beyond the bound, in the metric's unit; 0 or less if it keeps the bound."""
        return value - self.bound if self.op == "<=" else self.bound - value

    def __str__(self) -> str:
        return f"{self.metric} {self.op} {self.bound:g}"


class Caveat(Enum):
    """A warning about a figure. The value explains it, and gives advice if there is any."""

    SHORT_WINDOW = "the window is too short for this sensor: raise workload.screening_seconds"
    NOISY = "repeats differ by 5 % or more: close other programs, or raise workload.final_repeats"
    SLOW_FIRST_RUN = "the first repeat was slow: raise workload.warmup_seconds"
    OUTLIERS = "some repeats lie far from the others, probably because another program ran"
    THERMALLY_THROTTLED = (
        "the device slowed down because of heat: improve its cooling, or choose a lower limit"
    )
    POWER_CAPPED = "the device reached its power cap"
    CAP_NOT_BINDING = "at this load the power limit changes neither speed nor watts"
    DRIFT = "the machine changed during the sweep: sweep again when it is quiet"
    BUSY_MACHINE = "other processes used the machine during the measurement: close them"
    SENSOR_CONFLICT = "the sensor's energy counter and its power reading disagree by more than 5 %"
    IN_STEP = "the load may repeat in step with the sensor's refreshes, so watts are uncertain: add power.beside=[plug]"
    MISSING_DOMAIN = "this sensor does not cover the whole machine"
    ESTIMATED = "watts are estimated, not measured: connect a sensor (see `sweeper doctor`)"
    ABOVE_CEILING = "the speed is above the limit of the memory bandwidth: this figure cannot be true"
    SYNTHETIC_QUALITY = "the model's weights are random: its quality figures say nothing about real models"
    SIMULATED = "the machine is simulated: no figure here was measured"
    SPREAD_UNKNOWN = "a figure was measured only once, so its spread is unknown"
    STOPPED_EARLY = (
        "stopped after a few measurements because another trial was clearly better in every objective"
    )
    BEYOND_TRAINING = (
        "the context is longer than the model was trained for: answers get worse beyond that length, and "
        "llama-server cuts each slot to it"
    )
    NOT_LOCKED = (
        "the system did not let llama.cpp lock the model in memory: raise the memlock limit (`ulimit -l`), or set "
        "space.use_mlock=false"
    )

    @property
    def advice(self) -> str:
        """The explanation and advice, in one line."""
        return str(self.value)


@dataclass(frozen=True, slots=True)
class Reading:
    """A value with its spread: median and 95 % interval over ``n`` repeats, in the metric's unit."""

    median: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class PowerSource:
    """The source of watts, and how far to trust it."""

    name: str  # nvml, rapl, hwmon, battery, plug, command, estimate, simulated, or the user's name
    interface: str  # for example "nvmlDeviceGetTotalEnergyConsumption" or "intel-rapl:0/energy_uj"
    scope: Scope
    kind: Kind
    update_period_seconds: float | None = None
    device: str | None = None  # UUID, zone, PCI address, or host of a plug
    note: str | None = None  # for example the ratings behind an estimate
    settling_seconds: float | None = None  # of averaged power: the time until it shows a step in full


@dataclass(frozen=True, slots=True)
class EnergyReading:
    """Energy over one window, from one source. If ``joules`` is None, ``reason`` says why."""

    source: PowerSource
    seconds: float
    joules: float | None
    reason: str | None = None
    samples: int = 0
    largest_gap_seconds: float | None = None
    error_fraction: float | None = None  # half-width of the 95 % error bar, as a fraction of joules
    temperature_start_celsius: float | None = None
    temperature_end_celsius: float | None = None
    temperature_max_celsius: float | None = None
    clock_mhz: float | None = None  # mean over the window
    throttle_reasons: tuple[str, ...] = ()
    capped_share: float | None = None  # share of samples under a power cap, 0 to 1
    requested_limit_watts: float | None = None
    enforced_limit_watts: float | None = None
    other_processes: int | None = None
    caveats: tuple[Caveat, ...] = ()
    beside: tuple[EnergyReading, ...] = ()  # the same window on sensors that do not rank trials

    @property
    def watts(self) -> float | None:
        """Mean power over the window in W, or None if energy is missing."""
        return None if self.joules is None or self.seconds <= 0 else self.joules / self.seconds


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What others took of the processors during one window. Shares are 0 to 1; None if the system does not say."""

    cores: int  # CPUs that the sweep may use
    others_share: float | None = None  # of the time of these CPUs, used by other processes
    steal_share: float | None = None  # of the time of these CPUs, taken by other virtual machines
    pressure_share: float | None = None  # of the window, in which some task waited for a CPU
    limit_share: float = 0.0  # what others may take beside this number of threads before figures are in doubt

    @property
    def share(self) -> float:
        """The share of the processors' time that others took, as far as known."""
        return (self.others_share or 0.0) + (self.steal_share or 0.0)

    @property
    def disturbs(self) -> bool:
        """Whether the figures of the window are in doubt."""
        return self.share > self.limit_share


@dataclass(frozen=True, slots=True)
class Served:
    """The requests of several users in one window, timed at the client. Times are in s, one for each request."""

    users: int
    requests: int  # answers that were complete inside the window
    first_token_seconds: tuple[float, ...] = ()  # of the requests that were sent inside the window
    request_seconds: tuple[float, ...] = ()  # of the requests that were sent and answered inside the window


@dataclass(frozen=True, slots=True)
class Drafts:
    """The tokens that speculative decoding drafted in one window, and those of them that the model accepted."""

    drafted: int
    accepted: int


@dataclass(frozen=True, slots=True)
class Window:
    """One timed window of one phase, raw."""

    phase: Phase
    repeat: int
    tokens: int
    seconds: float
    energy: EnergyReading
    depth: int = 0
    utc: str | None = None
    disturbance: Disturbance | None = None  # None: not looked at
    served: Served | None = None  # of a decode window with several users
    drafts: Drafts | None = None  # of a decode window; None: nothing was to be drafted


@dataclass(frozen=True, slots=True)
class Fill:
    """The timed filling of an empty context, without a pause for anything else."""

    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """The measurement of one trial. ``windows`` are the raw data; ``metrics`` are computed from them."""

    configuration: Configuration
    in_force: Mapping[str, Any]  # the values that the engine read back
    metrics: Mapping[str, Reading]
    missing: Mapping[str, str]  # metric -> reason why it is missing
    windows: tuple[Window, ...]
    caveats: tuple[Caveat, ...]
    load_seconds: float
    warmup_seconds: float
    reloaded: bool  # False: the model was still loaded from the previous trial
    log_tail: tuple[str, ...] = ()
    fill: Fill | None = None  # of the whole context; None: it was not filled, or not timed
    fill_seconds: float = 0.0  # before the windows at the workload's depth, a restored context included
    prompt_seconds: float = 0.0  # of one prompt at that depth, as the warm-up expects it


@dataclass(frozen=True, slots=True)
class Visit:
    """One visit of the final stage to one finalist: its raw windows, caveats and memory."""

    trial: int
    visit: int
    windows: tuple[Window, ...]
    caveats: tuple[str, ...]
    memory_mib: float | None
    vram_mib: float | None
    resident_watts: float | None = None
    seconds: float = 0.0  # the whole visit
    measured_seconds: float = 0.0  # of these, load, warm-up and windows
    fill: Fill | None = None


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One GGUF file of the model at one quantisation."""

    quant: str
    path: str
    sha256: str
    size_bytes: int
    # Nats/token against the most precise file, with an f16 cache: of recorded tables, simulated machines and sweeps of
    # earlier versions. In other sweeps, the trials have the figures.
    kl_divergence: float | None = None


@dataclass(frozen=True, slots=True)
class DraftModel:
    """A draft model of speculative decoding. ``spec_type`` is the only kind of speculation that uses its file."""

    file: ModelFile
    spec_type: str


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """The model of the sweep. ``files`` maps each available quantisation to its file."""

    name: str
    architecture: str
    parameters: int
    n_layer: int
    n_ctx_train: int
    source: Literal["synthetic", "file", "hub", "simulated", "endpoint"]
    base_quant: str  # the quantisation of the original file
    files: Mapping[str, ModelFile]
    expert_count: int = 0
    expert_size_bytes: int = 0  # of the original file's experts; 0 in older records
    active_share: float | None = None  # of the weights, which each token reads; None: not known
    kv_elements: int | None = None  # keys and values of one token in all layers; None: not known
    repo: str | None = None
    revision: str | None = None
    mtp_layers: int = 0  # layers of multi-token prediction, with which the model itself can draft
    draft: DraftModel | None = None

    def draft_file(self, configuration: Configuration) -> ModelFile | None:
        """The draft model's file, if a server with this configuration loads it."""
        draft = self.draft
        return draft.file if draft is not None and draft.spec_type == configuration.spec_type else None

    def file(self, quant: str | None) -> ModelFile:
        """The file of a quantisation; None stands for the original file."""
        return self.files[quant or self.base_quant]


@dataclass(frozen=True, slots=True)
class GpuRecord:
    """One GPU as found. Memory is in MiB and power in W; None if the device does not report it."""

    name: str
    uuid: str
    driver: str
    index: int = 0
    memory_mib: int | None = None
    power_min_watts: float | None = None
    power_max_watts: float | None = None
    power_default_watts: float | None = None
    power_limit_watts: float | None = None
    integrated: bool = False
    visible: bool = True  # to CUDA, by CUDA_VISIBLE_DEVICES


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """A machine. ``fingerprint`` is a digest of everything that decides its speed and watts."""

    fingerprint: str
    cpu: str
    physical_cores: int
    logical_cores: int
    memory_mib: int
    kernel: str
    gpus: tuple[GpuRecord, ...] = ()
    performance_cores: int | None = None  # on hybrid CPUs
    memory_bandwidth_gb_per_second: float | None = None  # measured, read
    cpu_quota: float | None = None  # CPUs of processor time, where a control group allows less than the cores


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """The engine: ``llama_cpp``, ``endpoint``, ``simulated`` or ``replay``, with its build."""

    name: str
    version: str
    build: str = ""  # llama.cpp's system info line, or a description of the simulation
    gpu_offload: bool = False
    simulated: bool = False
    sampling: str = (
        ""  # how each generated token is sampled; empty: not at all, as in sweeps before this field
    )


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One finished trial. If sweeper measured it again, ``metrics`` are the final figures."""

    number: int
    state: TrialState
    configuration: Configuration
    metrics: Mapping[str, Reading] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    reason: str | None = None  # why it is not complete
    violations: Mapping[str, float] = field(default_factory=dict)  # constraint -> distance beyond the bound
    caveats: tuple[Caveat, ...] = ()
    in_force: Mapping[str, Any] = field(default_factory=dict)
    remeasured: bool = False  # measured a second time, interleaved with rivals, so sweeper may recommend it
    started_utc: str = ""
    seconds: float = 0.0  # the whole trial
    measured_seconds: float = 0.0  # of these, load, warm-up and windows
    load_seconds: float | None = None  # of loading the model; None if it was still loaded
    log_tail: tuple[str, ...] = ()
    disturbance: Disturbance | None = None  # of the window that others disturbed most; None: not looked at
    visits: int | None = None  # of the final stage, that count; None: the record does not say
    # Of ``seconds``, those without making files, measuring quality, loading and filling; 0: the record does not say.
    run_seconds: float = 0.0
    prompt_seconds: float = 0.0  # of one prompt, as the warm-up expected it; 0: the record does not say

    @property
    def feasible(self) -> bool:
        """Complete, and within every constraint."""
        return self.state == "complete" and all(v <= 0 for v in self.violations.values())


@dataclass(frozen=True, slots=True)
class Prices:
    """The energy price that the user pays."""

    currency: str = "EUR"
    per_kwh: float = 0.30
    hours_per_day: float = 4.0


@dataclass(frozen=True, slots=True)
class SweepRecord:
    """A whole sweep. The report, the picks, `apply`, `verify` and `compare` read this record.

    ``front`` and ``baseline`` are trial numbers. ``hypervolume`` has one value for each finished trial, relative
    to the final reference point. ``space`` lists the possible values of each searched parameter. ``ladder`` has the
    baseline's settings at each context, the shortest first, if the sweep looks for the longest context.
    """

    sweep: str
    state: Literal["running", "complete", "stopped"]
    machine: MachineRecord
    engine: EngineRecord
    model: ModelRecord
    workload: Workload
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    power: PowerSource
    space: Mapping[str, Any]
    trials: tuple[TrialRecord, ...]
    front: tuple[int, ...]
    baseline: int | None
    recommended: int | None  # trial number of the default pick; None until a trial was measured twice
    pick: str = "within:5%"
    prices: Prices = Prices()
    notes: tuple[str, ...] = ()  # shown once: why a dimension is missing, which ratings an estimate uses
    caveats: tuple[Caveat, ...] = ()
    hypervolume: tuple[float, ...] = ()
    idle_watts: Reading | None = None
    started_utc: str = ""
    updated_utc: str = ""
    stopped_because: str = ""
    sweeper_version: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)  # the composed configuration as plain data
    schema: int = SCHEMA
    baseline_configuration: Configuration | None = (
        None  # the engine's defaults, whichever trial measured them
    )
    # Reference, texts and program of the KL divergence; empty: nothing searched changes it, nothing can measure it, or
    # an old version measured it over 256 tokens. A trial without the figure has the reason in `missing`.
    quality: str = ""
    ladder: tuple[Configuration, ...] = ()

    def trial(self, number: int) -> TrialRecord:
        """The trial of that number. Raises KeyError if there is none."""
        for trial in self.trials:
            if trial.number == number:
                return trial
        raise KeyError(number)

    @property
    def gpu(self) -> str | None:
        """UUID of the GPU that the sweep's watts or limits are of: its sensor's, else the first that CUDA sees."""
        return self.power.device or next((gpu.uuid for gpu in self.machine.gpus if gpu.visible), None)

    def on_front(self) -> tuple[TrialRecord, ...]:
        """The front's trials, in the front's order."""
        return tuple(self.trial(number) for number in self.front)


_CONVERTER = cattrs.Converter()
_CONVERTER.register_unstructure_hook(Caveat, lambda caveat: caveat.name.lower())
_CONVERTER.register_structure_hook(Caveat, lambda name, _: Caveat[str(name).upper()])


def to_plain(record: Any) -> Any:
    """Turn a record into plain dicts, lists, strings and numbers, ready for JSON."""
    return _CONVERTER.unstructure(record)


def from_plain(data: Any, cls: type[T]) -> T:
    """Build the record of type ``cls`` that ``data`` describes; unknown keys are ignored.

    Raises:
        cattrs.BaseValidationError: if a key is missing or has the wrong type.
    """
    return _CONVERTER.structure(data, cls)
