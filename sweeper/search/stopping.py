"""When to stop the search: the remaining gain is smaller than a measurement can show."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweeper.search.front_model import Outlook

# Growth of the front below this share is not worth its trials, whatever the noise.
LEAST_GAIN = 0.01
# A noisy machine raises the threshold, but not beyond this: the user must then reduce the noise.
MOST_NOISE = 0.05
# The rule decides nothing before this many trials, because a model of few points is overconfident. It must also agree
# this often in a row, because the candidates of one proposal may be poor by chance.
LEAST_TRIALS = 15
IN_A_ROW = 3


class StoppingRule:
    """Judges the expectation of a model-based sampler. Call it once after each proposal."""

    def __init__(self) -> None:
        self._agreed: list[int] = []  # number of finished trials at each verdict in a row

    def __call__(self, outlook: Outlook | None) -> str | None:
        """The reason to stop in words, or None to continue. ``outlook`` is the sampler's latest one."""
        if outlook is None or outlook.finished < LEAST_TRIALS:
            return None
        threshold = max(LEAST_GAIN, min(outlook.noise, MOST_NOISE))
        if outlook.gain >= threshold:
            self._agreed.clear()
            return None
        if not self._agreed or self._agreed[-1] != outlook.finished:
            self._agreed.append(outlook.finished)
        if len(self._agreed) < IN_A_ROW:
            return None
        why = " (about the noise of one measurement)" if threshold > LEAST_GAIN else ""
        less = f"less than {threshold * 100:.2g} %"
        return f"a further {outlook.trials} trials would be expected to add {less} to the front{why}"
