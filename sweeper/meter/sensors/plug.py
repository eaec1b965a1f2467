"""Network plugs between the wall and the machine: Shelly (Gen2 and later) and Tasmota.

A password comes from the environment, so that no configuration, record or message ever holds it. Proxies from the
environment are not used, because the plug is in this machine's network.

sweeper integrates power. It also compares the plug's own total, because some totals drift. If the two differ by more
than 5 % over two minutes or more, every reading has a caveat.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlencode, urlsplit

from sweeper.errors import ReadingFailed, SensorMissingError
from sweeper.http import direct_opener
from sweeper.meter.base import Sample, Sensor
from sweeper.meter.trust import MOST_CONFLICT
from sweeper.power_settings import PLUG_PASSWORD, PlugSettings
from sweeper.records import Caveat, PowerSource

# A plug in the same network answers within 50 ms; after this time, it is considered missing.
TIMEOUT_SECONDS = 2.0
# Both kinds refresh about once a second. With 1.2 s, a final window of 100 periods spans two minutes.
UPDATE_PERIOD_SECONDS = 1.2
# An answer has a few hundred bytes; a device that sends more is not a plug.
MOST_BYTES = 65536
# The total moves in steps, so sweeper compares it after this many of them.
COMPARED_STEPS = 50
COMPARED_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class _Kind:
    """Where a kind of plug tells its power in W and its total, and the unit and the step of that total in J."""

    path: str
    power: tuple[str, ...]
    total: tuple[str, ...]
    unit_joules: float
    step_joules: float


_KINDS = {
    "shelly": _Kind("/rpc/Switch.GetStatus?id=0", ("apower",), ("aenergy", "total"), 3600.0, 3.6),
    "tasmota": _Kind(
        "/cm?cmnd=Status%2010",
        ("StatusSNS", "ENERGY", "Power"),
        ("StatusSNS", "ENERGY", "Total"),
        3_600_000.0,
        3600.0,
    ),
}


class PlugSensor(Sensor):
    """A network plug. It covers the whole machine, including the losses of its power supply."""

    def __init__(
        self,
        settings: PlugSettings,
        clock: Callable[[], float] = time.monotonic,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        """Send no request yet. ``settings.url`` must be given."""
        super().__init__(clock)
        self._name = settings.kind
        self._kind = _KINDS[settings.kind]
        parts = urlsplit(settings.url or "")
        user, _, host = parts.netloc.rpartition("@")
        self._base = parts._replace(netloc=host).geturl().rstrip("/")
        self._user = unquote(user.partition(":")[0]) or "admin"
        self._password = os.environ.get(PLUG_PASSWORD)
        self._opener = direct_opener(*_logins(self._base, self._user, self._password))
        self._timeout = timeout_seconds
        self._first: tuple[float, float] | None = None  # moment and total in J
        self._last = (0.0, 0.0)  # moment and W
        self._joules = 0.0  # integrated power since the first reading
        self.source = PowerSource(
            name="plug",
            interface=f"{settings.kind} {self._kind.path}",
            scope="wall",
            kind="measured",
            update_period_seconds=UPDATE_PERIOD_SECONDS,
            device=urlsplit(self._base).hostname,
        )

    def _find(self) -> None:
        what = f"no {self._name} plug at {self._base}"
        try:
            self._ask()
        except _PasswordRefused as error:
            raise SensorMissingError(
                f"{what} that answers without a valid password ({error})",
                f"set the environment variable {PLUG_PASSWORD}",
            ) from error
        except ReadingFailed as error:
            raise SensorMissingError(
                f"{what} ({error})", "check power.plug.url and power.plug.kind"
            ) from error

    def _take(self) -> Sample:
        moment, watts, total_joules = self._ask()
        if total_joules is not None:
            self._compare(moment, watts, total_joules)
        return Sample(moment, power_watts=watts)

    def _ask(self) -> tuple[float, float, float | None]:
        """The moment, power in W, and the total in J if the plug keeps one.

        A plug's small web server stumbles at times, so an answer that makes no sense gets a second request.
        """
        try:
            return self._ask_once()
        except _NoSense:
            return self._ask_once()

    def _ask_once(self) -> tuple[float, float, float | None]:
        shown = self._base + self._kind.path
        before = self._clock()
        data = self._answer(shown)
        moment = (before + self._clock()) / 2
        # Older Tasmota firmware refuses with status 200.
        if isinstance(data, dict) and "password" in str(data.get("WARNING")):
            raise _PasswordRefused(f"{shown}: it wants a password")
        watts, total = _number(data, self._kind.power), _number(data, self._kind.total)
        if watts is None or watts < 0:
            raise _NoSense(f"{shown} answered without a power in W")
        return moment, watts, None if total is None else total * self._kind.unit_joules

    def _answer(self, shown: str) -> Any:
        """The decoded JSON at the address ``shown``, which messages show without a password."""
        url = shown
        if self._name == "tasmota" and self._password:
            url += "&" + urlencode({"user": self._user, "password": self._password})
        try:
            with self._opener.open(url, timeout=self._timeout) as answer:
                return json.loads(answer.read(MOST_BYTES))
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 401:
                raise _PasswordRefused(f"{shown}: it wants a password") from None
            raise ReadingFailed(f"{shown}: {error}") from None
        except OSError as error:
            raise ReadingFailed(f"{shown}: {error}") from error
        except (http.client.HTTPException, ValueError, RecursionError) as error:
            # The error's own text could hold the request, and with it the password.
            raise _NoSense(f"{shown}: the answer is not what a plug sends ({type(error).__name__})") from None

    def _compare(self, moment: float, watts: float, total_joules: float) -> None:
        """Compare the plug's total with its integrated power since the first reading."""
        if self._first is None:
            self._first = (moment, total_joules)
        else:
            self._joules += (moment - self._last[0]) * (watts + self._last[1]) / 2
        self._last = (moment, watts)
        seconds, counted = moment - self._first[0], total_joules - self._first[1]
        if seconds >= COMPARED_SECONDS and self._joules >= COMPARED_STEPS * self._kind.step_joules:
            has_parted = abs(counted - self._joules) > MOST_CONFLICT * self._joules
            self.caveats = (Caveat.SENSOR_CONFLICT,) if has_parted else ()


class _PasswordRefused(ReadingFailed):
    """The plug wants a password, or another one."""


class _NoSense(ReadingFailed):
    """The plug answered with something else than a reading."""


class _Digest(urllib.request.HTTPDigestAuthHandler):
    """Also knows SHA-256, which Shelly asks for and urllib has from Python 3.14 on."""

    def get_algorithm_impls(self, algorithm: str) -> Any:
        name = {"MD5": "md5", "SHA-256": "sha256"}.get(algorithm.upper())
        if name is None:
            raise ValueError(f"the plug asks for the unknown digest {algorithm!r}")

        def digest(text: str) -> str:
            return hashlib.new(name, text.encode("utf-8")).hexdigest()

        return digest, lambda secret, data: digest(f"{secret}:{data}")


def _logins(base: str, user: str, password: str | None) -> tuple[urllib.request.BaseHandler, ...]:
    """Answers to a plug that asks for a login: digest (Shelly Gen2 and later), or basic (older ones)."""
    if not password:
        return ()
    known = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    known.add_password(None, base, user, password)
    return _Digest(known), urllib.request.HTTPBasicAuthHandler(known)


def _number(data: Any, keys: tuple[str, ...]) -> float | None:
    """The number under these keys, or None."""
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    if not isinstance(data, (int, float)) or isinstance(data, bool):
        return None
    try:
        number = float(data)
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return number if math.isfinite(number) else None
