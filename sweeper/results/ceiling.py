"""What decode speed the memory's bandwidth allows. Pure arithmetic on a record."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sweeper.records import Caveat, SweepRecord, TrialRecord

# Large copies and plain reading reach this machine's bandwidth within about a tenth, beside other work.
BANDWIDTH_ERROR = 1.1
# The last caches of a desktop hold up to about 100 MiB, those of a server's socket several hundred.
MOST_CACHED_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The decode speed that memory bandwidth allows in tok/s, and the share of it that was reached.

    ``least_share`` is that of the low end of the speed's interval. ``cached`` says that so small a model may stay in
    the processor's caches in part, which are faster.
    """

    tokens_per_second: float
    share: float
    least_share: float
    cached: bool = False

    @property
    def cannot_be_true(self) -> bool:
        """Whether the speed lies above the ceiling by more than its noise and what a measured bandwidth errs by."""
        return self.least_share > BANDWIDTH_ERROR and not self.cached


def ceiling(record: SweepRecord, trial: TrialRecord) -> Ceiling | str:
    """The ceiling of one trial, or the reason why it is not known.

    Bytes read for each token are taken as the model file's size: weights only, so with a long context the
    true ceiling is a little lower, and a little higher where the embedding table is a large part of it.
    """
    bandwidth = record.machine.memory_bandwidth_gb_per_second
    speed = trial.metrics.get("tokens_per_second")
    file = record.model.files.get(trial.configuration.quant or record.model.base_quant)
    if trial.configuration.n_gpu_layers != 0 and record.engine.gpu_offload:
        return "layers run on a GPU, whose memory bandwidth was not measured"
    if record.engine.simulated:
        return "the machine is simulated"
    if record.model.expert_count:
        return "a mixture of experts reads only a part of its weights for each token"
    if bandwidth is None:
        return "this machine's memory bandwidth was not measured"
    if speed is None or file is None or file.size_bytes <= 0:
        return "the speed or the model file's size is not known"
    limit = bandwidth * 1e9 / file.size_bytes
    return Ceiling(limit, speed.median / limit, speed.low / limit, file.size_bytes < MOST_CACHED_BYTES)


def with_ceiling_caveats(record: SweepRecord) -> tuple[TrialRecord, ...]:
    """The record's trials, with `Caveat.ABOVE_CEILING` on those whose speed cannot be true, and on no other."""

    def marked(trial: TrialRecord) -> TrialRecord:
        found = ceiling(record, trial)
        above = isinstance(found, Ceiling) and found.cannot_be_true
        kept = tuple(c for c in Caveat if (above if c is Caveat.ABOVE_CEILING else c in trial.caveats))
        return trial if kept == tuple(trial.caveats) else replace(trial, caveats=kept)

    return tuple(marked(trial) for trial in record.trials)
