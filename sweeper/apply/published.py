"""The ports that the services of Compose files publish on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from sweeper.apply.base import LOOPBACK
from sweeper.apply.yaml_text import Tagged

_VARIABLE = re.compile(r"\$(?:(?P<plain>\w+)|\{(?P<name>\w+)(?::?-(?P<default>[^}]*))?[^}]*\})")
_ON_LOOPBACK = ("", "0.0.0.0", LOOPBACK)  # noqa: S104 - addresses that keep 127.0.0.1 from others


def loopback_ports(
    files: tuple[Mapping[str, Any], ...], variables: Mapping[str, str]
) -> dict[str, list[range]]:
    """For each service, the TCP ports that it publishes on 127.0.0.1 or on every address.

    Args:
        files: The services of each file, in the order in which Compose merges the files.
        variables: The values of ``${…}``. A port that stays unknown is left out.
    """
    found: dict[str, list[range]] = {}
    for services in files:
        for name, service in services.items():
            ports = service.get("ports") if isinstance(service, dict) else None
            if isinstance(ports, Tagged):  # `!reset` and `!override` take away the ports of the file before
                found[name] = []
                ports = None if ports.tag == "!reset" else ports.value
            listed = ports if isinstance(ports, list) else []
            found.setdefault(name, []).extend(p for port in listed for p in _ports(port, variables))
    return found


def _ports(port: Any, variables: Mapping[str, str]) -> Iterator[range]:
    def text(value: Any) -> str:
        word = str(value.value if isinstance(value, Tagged) else value or "")
        return _VARIABLE.sub(
            lambda m: variables.get(m["plain"] or m["name"]) or m["default"] or "", word
        ).strip()

    if isinstance(port, dict):
        host, published, protocol = (text(port.get(k)) for k in ("host_ip", "published", "protocol"))
    else:
        words, _, protocol = text(port).partition("/")
        host, _, published = words.rpartition(":")[0].rpartition(":")
    ends = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", published)
    if ends and protocol in ("", "tcp") and host.strip("[]") in _ON_LOOPBACK:
        yield range(int(ends[1]), int(ends[2] or ends[1]) + 1)
