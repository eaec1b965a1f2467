"""The schema of Hydra's group ``power``: plain types and defaults, no heavy imports.

The classes are not frozen, unlike the records: OmegaConf makes a frozen schema read-only, and then no file
and no command line could override it. Nothing changes them after the configuration is composed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from sweeper.errors import ConfigError
from sweeper.spelling import nearest

SOURCES = ("auto", "nvml", "rapl", "hwmon", "battery", "plug", "command", "estimate")
PLUG_KINDS = ("shelly", "tasmota")
PLUG_PASSWORD = "SWEEPER_PLUG_PASSWORD"  # noqa: S105 - the variable's name; the record never holds its value
MEANS = ("auto", "direct", "helper", "zeusd")
COMMAND_UNITS = ("watts", "joules")
# Above 20 Hz, the sampler itself uses energy, which then counts as the trial's. To catch refreshes, the meter may
# sample more often within a budget of processor time (`sweeper.meter.sampling`).
MOST_SAMPLE_HZ = 20.0
# Counters must be read at least once a second, so that a wrap is never missed.
LEAST_SAMPLE_HZ = 1.0


@dataclass(slots=True)
class PlugSettings:
    """A network plug. ``url`` is its address, for example ``http://192.168.1.20``, or with the name of a user."""

    kind: str = "shelly"
    url: str | None = None


@dataclass(slots=True)
class CommandSettings:
    """A command of the user's. Its last line of output is one number, in ``unit``; no shell runs it."""

    argv: list[str] = field(default_factory=list)
    unit: str = "watts"  # watts now, or joules since any moment
    name: str = "command"


@dataclass(slots=True)
class EstimateSettings:
    """What an estimate rests on: the machine's power in W at rest and with every core busy."""

    idle_watts: float | None = None
    busy_watts: float | None = None


@dataclass(slots=True)
class LimitMeansSettings:
    """How limits are set: see `sweeper.limits.rights.MeansSettings`, and docs/limits-and-rights.md."""

    means: str = "auto"  # auto, direct, helper, zeusd
    zeusd_socket: str | None = None


@dataclass(slots=True)
class PowerSettings:
    """Where watts come from.

    ``source`` ranks; ``beside`` names other sources that are recorded with it and never rank. ``device`` is a
    GPU's UUID, index or PCI address, a hwmon device's PCI address or name, or ``psys`` for RAPL's platform.
    """

    source: str = "auto"
    sysfs_root: str = "/sys"
    procfs_root: str = "/proc"
    device: str | None = None
    beside: tuple[str, ...] = ()
    sample_hz: float = 10.0
    plug: PlugSettings = field(default_factory=PlugSettings)
    command: CommandSettings = field(default_factory=CommandSettings)
    estimate: EstimateSettings = field(default_factory=EstimateSettings)
    limits: LimitMeansSettings = field(default_factory=LimitMeansSettings)


def check_settings(settings: PowerSettings) -> None:
    """Refuse words and values that cannot work. The ConfigError names the key and what it may be."""
    _one_of("power.source", settings.source, SOURCES)
    for name in settings.beside:
        _one_of("power.beside", name, SOURCES[1:])
    if not LEAST_SAMPLE_HZ <= settings.sample_hz <= MOST_SAMPLE_HZ:
        raise ConfigError(
            f"power.sample_hz={settings.sample_hz:g} is not in {LEAST_SAMPLE_HZ:g} to {MOST_SAMPLE_HZ:g}"
        )
    wanted = (settings.source, *settings.beside)
    if "plug" in wanted or settings.plug.url:
        _check_plug(settings.plug)
    if "command" in wanted:
        _one_of("power.command.unit", settings.command.unit, COMMAND_UNITS)
        if not settings.command.argv:
            raise ConfigError("power.command.argv is empty: set it, like power.command.argv=[/usr/bin/watts]")
    idle, busy = settings.estimate.idle_watts, settings.estimate.busy_watts
    for key, value in (("idle_watts", idle), ("busy_watts", busy)):
        if value is not None and value <= 0:
            raise ConfigError(f"power.estimate.{key}={value:g} must be above 0")
    if idle and busy and busy < idle:
        raise ConfigError("power.estimate.busy_watts must not be below power.estimate.idle_watts")
    _one_of("power.limits.means", settings.limits.means, MEANS)


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{key}={value} is none of {', '.join(allowed)}{nearest(value, allowed)}")


def _check_plug(plug: PlugSettings) -> None:
    _one_of("power.plug.kind", plug.kind, PLUG_KINDS)
    if not plug.url:
        raise ConfigError("power.plug.url is missing: set it to the plug's address, like http://192.168.1.20")
    try:
        parts = urlsplit(plug.url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a bracket without its pair, or a port that is no number
        is_address = False
    if ":" in plug.url.rpartition("@")[0].removeprefix("http://").removeprefix("https://"):
        raise ConfigError(
            "power.plug.url must not hold a password, because sweeper records the configuration: "
            f"leave `:PASSWORD` out of it, and set the environment variable {PLUG_PASSWORD}"
        )
    if not is_address:
        raise ConfigError(f"power.plug.url={plug.url} is no http address: write it like http://192.168.1.20")
