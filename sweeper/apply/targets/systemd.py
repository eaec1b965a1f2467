"""systemd: a drop-in for ``llama-server.service``, and a unit that sets the power limit at boot.

An existing unit of that name stays as it is; if there is none, sweeper writes a whole one. Escapes follow
systemd.service(5) and systemd.unit(5): ``%`` and ``$`` are doubled, words quoted with C escapes.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from sweeper.apply.base import Command, Draft, Request, change, read_existing
from sweeper.apply.llama_command import server_argv

FOLDER = Path("/etc/systemd/system")
_VENDOR_FOLDERS = (Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"), Path("/run/systemd/system"))
SERVICE = "llama-server.service"
LIMIT_SERVICE = "sweeper-power-limit.service"
_WHOLE_SERVICE = f"""\
# written by sweeper; what it runs is set in llama-server.service.d/sweeper.conf
[Unit]
Description=llama.cpp server
After=network.target {LIMIT_SERVICE}

[Service]
Restart=on-failure
DynamicUser=yes
ExecStart=/bin/false

[Install]
WantedBy=multi-user.target
"""


def draft(request: Request) -> Draft:
    """Write the units to ``/etc/systemd/system``, or to the folder that the user named."""
    folder = (request.folder if request.file is None else request.file.parent).expanduser().absolute()
    files = [
        change(request.target_file(f"{SERVICE}.d/sweeper.conf"), drop_in(request), "what the service runs")
    ]
    units, notes = [SERVICE], []
    base = folder / SERVICE
    ours = read_existing(base) == _WHOLE_SERVICE.encode()
    if ours or not any((place / SERVICE).exists() for place in (folder, *_VENDOR_FOLDERS)):
        files.insert(0, change(base, _WHOLE_SERVICE, "a whole service, since none of that name exists"))
        notes.append("the service runs as a user of its own: make the model readable for all users")
    limit = limit_unit(request)
    if limit is not None:
        files.append(change(folder / LIMIT_SERVICE, limit, "sets the power limit at every boot"))
        units.insert(0, LIMIT_SERVICE)
    notes += [
        f"{other} comes later and has its own ExecStart=, which wins: rename or remove it"
        for other in sorted((folder / f"{SERVICE}.d").glob("*.conf"))
        if other.name > "sweeper.conf" and b"ExecStart=" in (read_existing(other) or b"")
    ]
    return Draft(
        files=tuple(files),
        commands=(
            Command("make systemd read the units", ("sudo", "systemctl", "daemon-reload")),
            Command("start them now and at every boot", ("sudo", "systemctl", "enable", "--now", *units)),
            Command("restart those that run already", ("sudo", "systemctl", "restart", *units)),
        ),
        notes=tuple(notes),
        undo=(
            f"stop what still runs: sudo systemctl disable --now {' '.join(units)}; "
            "sudo systemctl daemon-reload",
        ),
        sets_power_limit=limit is not None,
    )


def quoted(text: str) -> str:
    """One word where systemd expands ``%`` but not ``$``, as in ``Environment=``."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _word(text: str) -> str:
    """One word of an ``ExecStart=`` line."""
    return quoted(text.replace("$", "$$"))


def drop_in(request: Request) -> str:
    """The drop-in: an empty ``ExecStart=`` clears the unit's own command first."""
    found = shutil.which("llama-server")
    program, *words = server_argv(request, str(Path(found).absolute()) if found else "llama-server")
    # `@ - : + !` before the program mean something to systemd, which expands no `$` there.
    plain = re.fullmatch("[A-Za-z0-9/._-]+", program)
    command = [program if plain else quoted(program), *(_word(word) for word in words)]
    lines = ["[Service]"]
    lines += [f"Environment={quoted(f'{name}={value}')}" for name, value in request.environment.items()]
    if request.configuration.use_mlock:
        lines.append("LimitMEMLOCK=infinity")
    return "\n".join([*lines, "ExecStart=", f"ExecStart={' '.join(command)}"]) + "\n"


def limit_unit(request: Request) -> str | None:
    """A unit that sets the limit of the sweep's GPU or processor; None if there is none to set."""
    watts = request.configuration.power_limit_watts
    if watts is None:
        return None
    device = request.record.gpu
    gpus = [gpu for gpu in request.record.machine.gpus if gpu.uuid.startswith("GPU-")]
    # The GPU whose watts the sweep measured, else the main one.
    wanted = [gpu for gpu in gpus if gpu.uuid == device]
    wanted += [gpu for gpu in gpus if gpu.index == request.configuration.main_gpu]
    after, stop = "", ""
    if gpus:
        gpu = (wanted or gpus)[0]
        start = f"/usr/bin/env nvidia-smi -i {_word(gpu.uuid)} -pl {watts}"
        after = "After=nvidia-persistenced.service\n"
        found_watts = gpu.power_limit_watts or gpu.power_default_watts
        if found_watts:
            stop = f"ExecStop=/usr/bin/env nvidia-smi -i {_word(gpu.uuid)} -pl {found_watts:g}\n"
    elif request.record.power.name == "rapl":
        zone = device if device and ":" in device else "intel-rapl:0"
        file = f"/sys/class/powercap/{zone}/constraint_0_power_limit_uw"
        start = f"/bin/sh -c {_word(f'echo {watts * 1_000_000} > {file}')}"
    else:
        return None
    return f"""\
# written by sweeper; `sweeper rollback` takes it away again
[Unit]
Description=Power limit of {watts} W found by sweeper
{after}
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={start}
{stop}
[Install]
WantedBy=multi-user.target
"""
