"""The journal's words on disk, and the locks that keep two sweeps apart."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.errors import StoreError, SweepBusyError
from sweeper.limits.device_lock import DeviceLocks, lock_folder
from sweeper.limits.journal import (
    Entry,
    Journal,
    boot_id,
    find_journals,
    process_start_ticks,
)
from sweeper.limits.knob import KnobId

POWER = KnobId("nvml_power", "GPU-1")
CLOCK = KnobId("nvml_clock", "GPU-1")
PACKAGE = KnobId("rapl", "intel-rapl:0", "constraint_1")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, {POWER: 450_000, CLOCK: None, PACKAGE: 64_000_000})
    journal.intent(POWER, 200_000)
    journal.took(POWER, 200_000)
    journal.intent(CLOCK, 1500)
    record = Journal.open(journal.path)
    assert record is not None
    assert record.entries == journal.entries
    assert record.entries[POWER] == Entry(450_000, (200_000,))
    assert record.entries[CLOCK] == Entry(None, (1500,), unsettled=1)
    assert record.entries[PACKAGE] == Entry(64_000_000)
    assert record.header["boot_id"] == boot_id()
    assert record.owner == os.getpid()
    assert find_journals(tmp_path) == [journal.path]
    journal.remove()
    assert Journal.open(journal.path) is None
    assert find_journals(tmp_path) == []
    with pytest.raises(StoreError, match="closed"):
        journal.intent(POWER, 1)


@settings(max_examples=30, deadline=None)  # each writes to the disk, and waits for it
@given(st.lists(st.tuples(st.sampled_from(["intent", "took"]), st.integers(0, 10**6)), max_size=8), st.data())
def test_a_journal_cut_anywhere_still_tells_what_was_found(
    tmp_path_factory: pytest.TempPathFactory, words: list[tuple[str, int]], data: st.DataObject
) -> None:
    journal = Journal.create(tmp_path_factory.mktemp("root"), {POWER: 450_000})
    after = [journal.entries[POWER]]
    for word, raw in words:
        getattr(journal, word)(POWER, raw)
        after.append(journal.entries[POWER])
    journal.close()
    whole = journal.path.read_bytes()
    header = whole.index(b"\n") + 1
    cut = data.draw(st.integers(header, len(whole)))
    journal.path.write_bytes(whole[:cut])
    record = Journal.open(journal.path)
    assert record is not None
    lines = whole[header:cut].count(b"\n")
    # A last line that is whole but for its end of line was written, too.
    assert record.entries[POWER] in after[lines : lines + 2]


def test_no_journal_is_written_over(tmp_path: Path) -> None:
    one, two = (Journal.create(tmp_path, {POWER: 1}) for _ in range(2))
    assert find_journals(tmp_path) == sorted([one.path, two.path])


@pytest.mark.parametrize(
    "text", ["", "no json", "[]", '{"found": []}', '{"boot_id": "x", "pid": 1, "found": [{"kind": "fan"}]}']
)
def test_what_is_no_journal_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "limits-1-1.jsonl"
    path.write_text(text)
    with pytest.raises(StoreError, match=r"limits-1-1\.jsonl is not a journal of limits"):
        Journal.open(path)


def test_a_process_is_known_by_pid_and_start(tmp_path: Path) -> None:
    stat = tmp_path / "77"
    stat.mkdir()
    fields = " ".join(str(number) for number in range(4, 53))
    (stat / "stat").write_text(f"77 (a (strange) name) S {fields}\n")
    assert process_start_ticks(77, tmp_path) == 22
    assert process_start_ticks(78, tmp_path) is None


def test_locks_exclude_another_process(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from sweeper.limits.device_lock import DeviceLocks
with DeviceLocks(["GPU-1"], Path({str(tmp_path)!r})) as locks:
    locks.remember(Path("/a/journal"), {{"boot_id": "x"}})
    print("held", flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        both = DeviceLocks(["GPU-0", "GPU-1"], tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sweeper.limits.device_lock.WAIT_SECONDS", 0.1)
            with pytest.raises(SweepBusyError, match=rf"GPU-1 \(process {other.pid}\)"):
                both.acquire()
        assert both.descriptors == []  # GPU-0 was let go again
        assert both.noted() == {Path("/a/journal"): {"boot_id": "x"}}
        with DeviceLocks(["GPU-0"], tmp_path):
            pass
        other.communicate(b"\n")
    with both:
        assert len(both.descriptors) == 2


def test_a_lock_outlives_its_taker_while_a_child_holds_it(tmp_path: Path) -> None:
    locks = DeviceLocks(["GPU-1"], tmp_path)
    locks.acquire()
    with subprocess.Popen(["sleep", "60"], pass_fds=locks.descriptors) as child:
        locks.release()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sweeper.limits.device_lock.WAIT_SECONDS", 0.1)
            with pytest.raises(SweepBusyError):
                locks.acquire()
        child.kill()
    locks.acquire()
    locks.release()


def test_a_link_in_a_locks_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "sweeper-GPU-1.lock").symlink_to(tmp_path / "target")
    with pytest.raises(StoreError, match="remove that file"):
        DeviceLocks(["GPU-1"], tmp_path).acquire()
    assert not (tmp_path / "target").exists()


def test_what_stands_in_a_lock_is_not_believed_blindly(tmp_path: Path) -> None:
    path = tmp_path / "sweeper-GPU-1.lock"
    for text in ("", "{", "[]", '{"journals": 3, "pid": "x"}', '{"journals": [3]}'):
        path.write_text(text)
        assert DeviceLocks(["GPU-1"], tmp_path).noted() == {}
    path.write_text(json.dumps({"journals": ["/a"]}))
    assert DeviceLocks(["GPU-1"], tmp_path).noted() == {Path("/a"): None}
    with contextlib.suppress(PermissionError):  # only root, and not in every container
        os.chown(path, 12345, 12345)
        assert DeviceLocks(["GPU-1"], tmp_path).noted() == {}


def test_the_lock_folder_is_one_for_all_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SWEEPER_LOCK_DIR", str(tmp_path))
    assert lock_folder() == tmp_path
    monkeypatch.delenv("SWEEPER_LOCK_DIR")
    assert lock_folder().stat().st_mode & 0o1777 == 0o1777
