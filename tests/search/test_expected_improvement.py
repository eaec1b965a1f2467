"""Expected hypervolume improvement, against sampling and against the volume itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.results.front import hypervolume
from sweeper.search.expected_improvement import expected_improvement, free_boxes

unit = st.floats(0.0, 1.0).map(lambda x: round(x, 2))


def certain(point):
    return np.array([point]), np.full((1, len(point)), 1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(unit, unit), max_size=6), st.tuples(unit, unit))
def test_a_certain_point_adds_what_the_volume_grows_in_a_plane(front, new):
    reference = (-0.1, -0.2)
    grown = hypervolume([*front, new], reference) - hypervolume(front, reference)
    assert expected_improvement(*certain(new), free_boxes(front, reference))[0] == pytest.approx(
        grown, abs=1e-6
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(unit, unit, unit), max_size=6), st.tuples(unit, unit, unit))
def test_a_certain_point_adds_what_the_volume_grows_in_space(front, new):
    reference = (-0.1, 0.0, -0.2)
    grown = hypervolume([*front, new], reference) - hypervolume(front, reference)
    assert expected_improvement(*certain(new), free_boxes(front, reference))[0] == pytest.approx(
        grown, abs=1e-6
    )


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_an_uncertain_point_adds_what_sampling_says(dimensions):
    rng = np.random.default_rng(3)
    front = [tuple(p) for p in rng.uniform(0, 1, (5, dimensions))]
    reference = (-0.2,) * dimensions
    means, deviations = np.full((1, dimensions), 0.7), np.full((1, dimensions), 0.3)
    before = hypervolume(front, reference)
    samples = rng.normal(means, deviations, (4000, dimensions))
    grown = [hypervolume([*front, tuple(s)], reference) - before for s in samples]
    expected = expected_improvement(means, deviations, free_boxes(front, reference))[0]
    assert expected == pytest.approx(np.mean(grown), abs=4 * np.std(grown) / np.sqrt(len(grown)))


def test_many_points_in_space_are_thinned_and_still_positive():
    rng = np.random.default_rng(1)
    sphere = np.abs(rng.normal(size=(60, 3)))
    front = [tuple(p / np.linalg.norm(p)) for p in sphere]
    lows, highs = free_boxes(front, (0.0, 0.0, 0.0))
    assert (lows < highs).all()
    assert expected_improvement(*certain((1.0, 1.0, 1.0)), (lows, highs))[0] > 0.3
