"""Kills an apply, then a rollback, before each of their changes of the disk. Run by test_apply_killed.py.

Python's audit events say when a change is about to happen, so nothing in sweeper has to announce it.

One process forks for every kill, since starting Python for each would take a minute. Prints as JSON, for
each target, how many kills there were and what differed afterwards.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from apply_sweep import CONFIGURATION, ENGINE, MACHINE, FakeLimit, make_sweep, tree

from sweeper.apply import journal
from sweeper.apply import run as apply
from sweeper.apply.targets.registry import target_names

FOUND_WATTS = 170


def main(work: Path) -> None:
    print(json.dumps({target: _everywhere(work / target, target) for target in target_names()}))


def _everywhere(work: Path, target: str) -> dict[str, object]:
    kills, wrong = 0, []
    for act in ("apply", "rollback"):
        step = 0
        while True:
            place = work / f"{act}-{step}"
            died, problem = _one(place, target, act, step)
            if problem:
                wrong.append(f"{act} killed before change {step}: {problem}")
            shutil.rmtree(place)
            if not died:
                break
            step += 1
        kills += step
    return {"kills": kills, "wrong": wrong}


def _one(place: Path, target: str, act: str, kill_before: int) -> tuple[bool, str]:
    folder = place / "files"
    folder.mkdir(parents=True)
    record = _prepare(place, folder, target)
    limit = FakeLimit(place / "limit")
    limit.set(FOUND_WATTS)
    before = tree(folder)
    if act == "rollback":
        _apply(place, folder, target, record)
        assert tree(folder) != before or limit.read() != FOUND_WATTS
    child = os.fork()
    if child == 0:
        _act(place, folder, target, record, act, kill_before)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    died = os.WIFSIGNALED(status)
    if not died and os.waitstatus_to_exitcode(status) != 0:
        return False, "the child failed by itself"
    unfinished = journal.last_to_undo(place / "root")
    if unfinished is not None:
        journal.rollback(place / "root", limit)
    if tree(folder) != before:
        return died, f"files differ: {sorted(tree(folder).items() ^ before.items())}"
    if limit.read() != FOUND_WATTS:
        return died, f"the limit is {limit.read()} W"
    if kill_before % 4 == 0:  # a kill must not stand in the way of the next apply; a sample, for time's sake
        _apply(place, folder, target, record)
    return died, ""


def _prepare(place: Path, folder: Path, target: str):
    model = place / "model.gguf"
    model.write_bytes(b"GGUF")
    record = make_sweep(model, CONFIGURATION.with_(power_limit_watts=120))
    file = OLD_FILES.get(target)
    if file is not None:
        name, content = file
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o640)
    return record


# A file of each target that others wrote before, with what a careless writer would lose.
OLD_FILES = {
    "llama-server": ("llama-server.ini", b"[other]\r\nmodel = /m/other.gguf\r\n; no end of line"),
    "llama-cpp-python": (
        "llama-cpp-python.json",
        b'{"models": [{"model": "/m/o.gguf", "model_alias": "o"}]}',
    ),
    "ollama": ("Modelfile", b"FROM llama3\n# mine"),
    "llama-swap": ("config.yaml", b"# mine\r\nmodels:\r\n    other: {cmd: x}\r\n"),
    "textgen": ("user_data/models/config-user.yaml", b"other.*$: {loader: ExLlamav3}"),
    "compose": ("compose.yaml", b"services:\n  db:\n    image: postgres # mine\nvolumes: {}\n"),
    "systemd": ("llama-server.service", b"[Service]\nExecStart=/opt/llama-server\n"),
    "env": ("llama-server.env", b"LLAMA_ARG_PORT=1\n"),
}


def _apply(place: Path, folder: Path, target: str, record) -> None:
    apply.run(
        record,
        3,
        target,
        apply.Options(folder=folder, file=folder / "new" / "model.py" if target == "python" else None),
        root=place / "root",
        machine=MACHINE,
        engine=ENGINE,
        write=True,
        limit=FakeLimit(place / "limit"),
    )


CHANGES = {"os.chmod", "os.chown", "os.mkdir", "os.remove", "os.rename", "os.rmdir"}


def _changes_disk(event: str, arguments: tuple) -> bool:
    return event in CHANGES or (event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR)))


def _act(place: Path, folder: Path, target: str, record, act: str, kill_before: int) -> None:
    count = 0

    def kill(event: str, arguments: tuple) -> None:
        nonlocal count
        if _changes_disk(event, arguments):
            if count == kill_before:
                if event == "open" and arguments[2] & os.O_TRUNC and os.path.exists(arguments[0]):
                    os.truncate(arguments[0], 0)  # no event tells this moment from the one before
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    sys.addaudithook(kill)  # cannot be taken away again, but this process ends here
    if act == "apply":
        _apply(place, folder, target, record)
    else:
        journal.rollback(place / "root", FakeLimit(place / "limit"))


if __name__ == "__main__":
    os.fsync = lambda _handle: (
        None
    )  # it guards against loss of power, which a kill is not; and costs most of the time
    main(Path(sys.argv[1]))
