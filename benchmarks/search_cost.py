"""What a proposal of our sampler costs after 20, 100, 300 and 1000 trials, in seconds.

    OMP_NUM_THREADS=1 python benchmarks/search_cost.py

Random configurations of a simulated machine are told first; then some proposals are timed. Processor time is
given beside the wall clock, since a busy machine stretches only the latter.
"""

from __future__ import annotations

import statistics
import time
import warnings

import optuna
from search_landscapes import Landscape, simulated

from sweeper.search.candidates import Candidates
from sweeper.search.gp_front import GpFrontSampler

AFTER = (20, 100, 300, 1000)
TIMED = 5


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    landscape = simulated("gpu_pc")
    print("trials  wall s  processor s   (medians of 5 proposals)")
    for count in AFTER:
        wall, processor = cost(landscape, count)
        print(f"{count:6d}  {wall:6.3f}  {processor:11.3f}")


def cost(landscape: Landscape, count: int) -> tuple[float, float]:
    """Median wall and processor time of a proposal once ``count`` trials are known."""
    space = landscape.space
    study = optuna.create_study(
        directions=["maximize", "minimize"],
        sampler=GpFrontSampler(space, 0, baseline=landscape.baseline, allowed=landscape.forecast),
    )
    distributions = space.distributions()
    for configuration in Candidates(space, 1).random_points(count):
        tell(landscape, study, optuna.create_trial, configuration, distributions)
    times = []
    for _ in range(TIMED):
        wall, processor = time.perf_counter(), time.process_time()
        trial = study.ask(distributions)
        times.append((time.perf_counter() - wall, time.process_time() - processor))
        trial.set_user_attr("state", "complete")
        point = landscape.point(space.configuration(trial.params)) or (1.0, -400.0)
        study.tell(trial, [point[0], -point[1]])
    return statistics.median(w for w, _ in times), statistics.median(p for _, p in times)


def tell(landscape, study, create, configuration, distributions) -> None:  # type: ignore[no-untyped-def]
    """Add a finished trial without asking for it."""
    point = landscape.point(configuration)
    params = landscape.space.params_of(configuration)
    attributes = {"configuration": configuration.to_dict(), "state": "complete" if point else "out_of_memory"}
    common = {"params": params, "distributions": distributions, "user_attrs": attributes}
    if point is None:
        study.add_trial(create(state=optuna.trial.TrialState.PRUNED, **common))
    else:
        study.add_trial(create(values=[point[0], -point[1]], **common))


if __name__ == "__main__":
    main()
