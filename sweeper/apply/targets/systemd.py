"""systemd: a drop-in for ``llama-server.service``, and a unit that sets the power limit at boot.

An existing unit of that name stays as it is; if there is none, sweeper writes a whole one. Escapes follow
systemd.service(5) and systemd.unit(5): ``%`` and ``$`` are doubled, words quoted with C escapes.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from sweeper.apply.base import Command, Draft, FileChange, Request, change
from sweeper.apply.llama_options import server_argv
from sweeper.records import GpuRecord

FOLDER = Path("/etc/systemd/system")
_VENDOR_FOLDERS = (Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"), Path("/run/systemd/system"))
SERVICE = "llama-server.service"
LIMIT_SERVICE = "sweeper-power-limit.service"


def draft(request: Request) -> Draft:
    """Write the units to ``/etc/systemd/system``, or to the folder that the user named."""
    folder = request.folder.expanduser().absolute()
    if request.file is not None:
        folder = request.file.expanduser().absolute().parent
    main = request.target_file(f"{SERVICE}.d/sweeper.conf")
    files: list[FileChange] = []
    base = folder / SERVICE
    if not any((place / SERVICE).exists() for place in (folder, *_VENDOR_FOLDERS)) or _is_ours(base):
        files.append(change(base, _service(), "a whole service, since none of that name exists"))
    files.append(change(main, drop_in(request), "what the service runs"))
    limit = _limit_unit(request)
    units = [SERVICE]
    if limit is not None:
        files.append(change(folder / LIMIT_SERVICE, limit, "sets the power limit at every boot"))
        units.insert(0, LIMIT_SERVICE)
    notes = [] if limit or request.configuration.power_limit_watts is None else [_no_device(request)]
    if files[0].path == base:
        notes.append("the service runs as a user of its own: make the model readable for all users")
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


def word(text: str) -> str:
    """One word of an ``ExecStart=`` line."""
    return quoted(text.replace("$", "$$"))


def quoted(text: str) -> str:
    """One word where systemd expands ``%`` but not ``$``, as in ``Environment=``."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def drop_in(request: Request) -> str:
    """The drop-in: an empty ``ExecStart=`` clears the unit's own command first."""
    program = shutil.which("llama-server") or "llama-server"
    argv = server_argv(request, str(Path(program).absolute()) if "/" in program else program)
    lines = ["[Service]"]
    lines += [f"Environment={quoted(f'{name}={value}')}" for name, value in request.environment.items()]
    if request.configuration.use_mlock:
        lines.append("LimitMEMLOCK=infinity")
    lines += ["ExecStart=", "ExecStart=" + " ".join([_program(argv[0]), *(word(w) for w in argv[1:])])]
    return "\n".join(lines) + "\n"


def _program(path: str) -> str:
    """The program's own word: ``@ - : + !`` before it mean something to systemd, which expands no ``$`` here."""
    return path if re.fullmatch("[A-Za-z0-9/._-]+", path) else quoted(path)


def _service() -> str:
    return (
        "# written by sweeper; what it runs stands in llama-server.service.d/sweeper.conf\n"
        "[Unit]\n"
        "Description=llama.cpp server\n"
        f"After=network.target {LIMIT_SERVICE}\n"
        "\n"
        "[Service]\n"
        "Restart=on-failure\n"
        "DynamicUser=yes\n"
        "ExecStart=/bin/false\n"
        "\n"
        "[Install]\n"
        "WantedBy=multi-user.target\n"
    )


def _is_ours(path: Path) -> bool:
    try:
        return path.read_text("utf-8") == _service()
    except (OSError, UnicodeDecodeError):
        return False


def _limit_unit(request: Request) -> str | None:
    watts = request.configuration.power_limit_watts
    if watts is None:
        return None
    gpu = _gpu(request)
    if gpu is not None:
        start = f"/usr/bin/env nvidia-smi -i {word(gpu.uuid)} -pl {watts}"
        back = gpu.power_limit_watts or gpu.power_default_watts
        stop = f"/usr/bin/env nvidia-smi -i {word(gpu.uuid)} -pl {back:g}" if back else None
        after = "After=nvidia-persistenced.service\n"
    elif request.record.power.name == "rapl":
        zone = (
            request.power_device if request.power_device and ":" in request.power_device else "intel-rapl:0"
        )
        file = f"/sys/class/powercap/{zone}/constraint_0_power_limit_uw"
        start, stop, after = f"/bin/sh -c {word(f'echo {watts * 1_000_000} > {file}')}", None, ""
    else:
        return None
    return (
        "# written by sweeper; `sweeper rollback` takes it away again\n"
        "[Unit]\n"
        f"Description=Power limit of {watts} W found by sweeper\n"
        f"{after}"
        "\n"
        "[Service]\n"
        "Type=oneshot\n"
        "RemainAfterExit=yes\n"
        f"ExecStart={start}\n" + (f"ExecStop={stop}\n" if stop else "") + "\n"
        "[Install]\n"
        "WantedBy=multi-user.target\n"
    )


def _gpu(request: Request) -> GpuRecord | None:
    """The GPU whose limit the sweep set: the one that it measured the watts of, else the main one."""
    gpus = [gpu for gpu in request.record.machine.gpus if gpu.uuid.startswith("GPU-")]
    wanted = next((gpu for gpu in gpus if gpu.uuid == request.power_device), None)
    return (
        wanted
        or next((gpu for gpu in gpus if gpu.index == request.configuration.main_gpu), None)
        or (gpus[0] if gpus else None)
    )


def _no_device(request: Request) -> str:
    return (
        f"the configuration holds a power limit of {request.configuration.power_limit_watts} W, and the "
        "sweep's record names no device that a unit could set it for: set it by hand"
    )
