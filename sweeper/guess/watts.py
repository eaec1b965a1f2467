"""The power that a model would draw, from ratings alone: always labelled ``estimated``."""

from __future__ import annotations

from sweeper.guess.records import Figure
from sweeper.meter.sensors.estimate import ratings
from sweeper.power_settings import EstimateSettings
from sweeper.records import Configuration, MachineRecord

# Guessed ratings may be far off; those of the user are as good as the plug that gave them.
GUESSED_FACTOR, GIVEN_FACTOR = 2.0, 1.3
# Decode waits for memory, so a card draws between a third of its limit and all of it.
CARD_LOW, CARD_EXPECTED = 0.3, 0.65


def estimated_watts(
    machine: MachineRecord, configuration: Configuration, settings: EstimateSettings
) -> Figure:
    """The watts while decoding: of the card if layers are on it and its limit is known, else of the processor."""
    limits = [gpu.power_limit_watts or gpu.power_default_watts for gpu in machine.gpus if gpu.visible]
    if configuration.n_gpu_layers != 0 and limits and limits[0] is not None:
        most = configuration.power_limit_watts or limits[0]
        reason = f"from the card's power limit of {most:.0f} W"
        return Figure(CARD_LOW * most, CARD_EXPECTED * most, float(most), "estimated", reason)
    cpus = machine.logical_cores
    idle, busy, _ = ratings(settings, cpus)
    watts = idle + (busy - idle) * min(1.0, configuration.n_threads / cpus)
    given = settings.idle_watts is not None and settings.busy_watts is not None
    factor = GIVEN_FACTOR if given else GUESSED_FACTOR
    reason = (
        f"from CPU use, with {idle:g} W when idle and {busy:g} W with all {cpus} CPUs busy; give or take "
    )
    if given:
        reason += f"{GIVEN_FACTOR - 1:.0%}"
    else:
        reason += (
            f"a factor of {GUESSED_FACTOR:g}, because these ratings are guesses: set power.estimate.idle_watts and "
            "power.estimate.busy_watts"
        )
    return Figure(watts / factor, watts, watts * factor, "estimated", reason)
