"""The contract of limit controls. A test subclasses it and provides its fixtures."""

from __future__ import annotations

from typing import Protocol

import pytest

from sweeper.errors import LimitRefused
from sweeper.limits.base import LimitControl, LimitRange


class LimitedDevice(Protocol):
    """The device behind a `LimitControl`, as another tool sees and sets it, in W or MHz."""

    def limit(self, name: str) -> int | None:
        """The value in force; None if the clock is not locked."""
        ...

    def change(self, name: str, value: int) -> None:
        """Set a limit without the control. The suite calls it only for limits that are read back."""
        ...


class LimitControlContract:
    """The contract of every limit control. Fixtures: ``limits``, not entered, and ``device``, the device behind it.

    At least one limit can be set, is read back, and has room between its lowest value and the value found.
    """

    def test_ranges_never_reach_above_what_was_found(
        self, limits: LimitControl, device: LimitedDevice
    ) -> None:
        """A range starts from the device's own value. A limit without a range has a reason of one line."""
        assert limits.ranges()
        for name, one in limits.ranges().items():
            assert one.name == name
            assert one.low < one.high
            assert one.step >= 1
            assert one.found == device.limit(name)
            assert one.found is None or one.high <= one.found
        for name, refusal in limits.refusals().items():
            assert name not in limits.ranges()
            assert str(refusal)
            assert "\n" not in str(refusal)

    def test_entering_and_leaving_changes_nothing(self, limits: LimitControl, device: LimitedDevice) -> None:
        """Setting None, for the value found, also changes nothing."""
        found = _shown(limits, device)
        with limits:
            for name in found:
                assert limits.set(name, None).requested is None
            assert _shown(limits, device) == found
        assert _shown(limits, device) == found
        assert not limits.outcomes

    def test_tells_what_the_device_took(self, limits: LimitControl, device: LimitedDevice) -> None:
        """The device has the value or its next lower one. ``enforced`` is the value read back, or None."""
        read_back = []
        with limits:
            for name, one in limits.ranges().items():
                for value in (_between(one), one.low, one.high):
                    taken = limits.set(name, value)
                    assert (taken.name, taken.requested) == (name, value)
                    shown = device.limit(name)
                    assert shown is not None
                    assert value - one.step < shown <= value
                    assert taken.enforced in (None, shown)
                    read_back.append(taken.enforced)
        assert any(value is not None for value in read_back)

    def test_refuses_what_is_out_of_range_and_touches_nothing(
        self, limits: LimitControl, device: LimitedDevice
    ) -> None:
        """The control refuses values below the lowest one and above the value found, and unknown limits."""
        found = _shown(limits, device)
        with limits:
            for name, one in limits.ranges().items():
                assert _refusal(limits, name, one.low - 1)
                assert _refusal(limits, name, one.high + 1)
            assert _refusal(limits, "no_such_limit", 1)
            assert _shown(limits, device) == found
        assert not limits.outcomes

    def test_gives_back_what_was_found(self, limits: LimitControl, device: LimitedDevice) -> None:
        """On exit, the control restores each limit and reports an outcome for it; also after a second entry."""
        found = _shown(limits, device)
        for _ in range(2):
            with limits:
                for name, one in limits.ranges().items():
                    limits.set(name, _between(one))
                    limits.set(name, one.low)
                    assert device.limit(name) == one.low
            assert _shown(limits, device) == found
            told = " ".join(str(outcome) for outcome in limits.outcomes)
            assert all(name in told for name in found)

    def test_gives_back_for_none(self, limits: LimitControl, device: LimitedDevice) -> None:
        """Setting None restores the value found before the exit."""
        with limits:
            for name, one in limits.ranges().items():
                limits.set(name, one.low)
                limits.set(name, None)
                assert device.limit(name) == one.found

    def test_gives_back_after_an_error(self, limits: LimitControl, device: LimitedDevice) -> None:
        """The control restores the limits and lets the error propagate."""
        found = _shown(limits, device)
        with pytest.raises(ZeroDivisionError), limits:  # noqa: PT012 - the control must hand the error on
            for name, one in limits.ranges().items():
                limits.set(name, one.low)
            raise ZeroDivisionError
        assert _shown(limits, device) == found

    def test_leaves_alone_what_another_tool_set(self, limits: LimitControl, device: LimitedDevice) -> None:
        """The control keeps another tool's value, both when it sets a limit and on exit, and reports it."""
        with limits:
            changed = {}
            for name, one in limits.ranges().items():
                if limits.set(name, _between(one)).enforced is None:
                    continue  # not read back, so the control cannot see a change by another tool
                changed[name] = one.low + 1
                device.change(name, changed[name])
                assert "another tool" in (_refusal(limits, name, one.low) or "")
                assert device.limit(name) == changed[name]
        assert changed
        assert {name: device.limit(name) for name in changed} == changed
        for name in changed:
            assert any(name in str(o) and "another tool" in str(o) for o in limits.outcomes)


def _shown(limits: LimitControl, device: LimitedDevice) -> dict[str, int | None]:
    return {name: device.limit(name) for name in limits.ranges()}


def _between(one: LimitRange) -> int:
    return (one.low + one.high) // 2


def _refusal(limits: LimitControl, name: str, value: int) -> str | None:
    try:
        limits.set(name, value)
    except LimitRefused as refused:
        return str(refused)
    return None
