"""The decode speed that the memory bandwidth allows. Pure arithmetic on a record."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sweeper.records import Caveat, SweepRecord, TrialRecord

# The measured bandwidth is right within about a tenth, even beside other work.
BANDWIDTH_ERROR = 1.1
# The last-level caches of a desktop hold up to about 100 MiB, those of a server's socket several hundred.
MOST_CACHED_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The decode speed that memory bandwidth allows, in tok/s, and the share of it that the trial reached.

    ``least_share`` is the share at the low end of the speed's interval. ``cached`` means that the model is small enough
    to stay partly in the processor's caches, which are faster.
    """

    tokens_per_second: float
    share: float
    least_share: float
    cached: bool = False

    @property
    def cannot_be_true(self) -> bool:
        """Whether the speed exceeds the ceiling by more than its noise and the error of a measured bandwidth."""
        return self.least_share > BANDWIDTH_ERROR and not self.cached


def ceiling(record: SweepRecord, trial: TrialRecord) -> Ceiling | str:
    """The ceiling of one trial, or the reason why it is not known.

    The bytes read for each token are taken as the size of the model file, which holds only weights. The true ceiling is
    slightly lower with a long context, and slightly higher if the embedding table is a large part of the file.
    """
    bandwidth = record.machine.memory_bandwidth_gb_per_second
    speed = trial.metrics.get("tokens_per_second")
    file = record.model.files.get(trial.configuration.quant or record.model.base_quant)
    if trial.configuration.n_gpu_layers != 0 and record.engine.gpu_offload:
        return "layers run on a GPU, and its memory bandwidth was not measured"
    if record.engine.simulated:
        return "the machine is simulated"
    if record.model.expert_count:
        return "a mixture of experts reads only part of its weights for each token"
    if bandwidth is None:
        return "this machine's memory bandwidth was not measured"
    if speed is None or file is None or file.size_bytes <= 0:
        return "the speed or the size of the model file is not known"
    # A server reads the weights once for the next token of every user whose request it decodes at the same time.
    limit = bandwidth * 1e9 / file.size_bytes * record.workload.users
    return Ceiling(limit, speed.median / limit, speed.low / limit, file.size_bytes < MOST_CACHED_BYTES)


def with_ceiling_caveats(record: SweepRecord) -> tuple[TrialRecord, ...]:
    """The record's trials. Exactly the trials whose speed cannot be true have `Caveat.ABOVE_CEILING`."""

    def marked(trial: TrialRecord) -> TrialRecord:
        found = ceiling(record, trial)
        above = isinstance(found, Ceiling) and found.cannot_be_true
        kept = tuple(c for c in Caveat if (above if c is Caveat.ABOVE_CEILING else c in trial.caveats))
        return trial if kept == tuple(trial.caveats) else replace(trial, caveats=kept)

    return tuple(marked(trial) for trial in record.trials)
