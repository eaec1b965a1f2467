"""A split model has not changed since its sweep as long as none of its parts has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from apply_sweep import ENGINE, MACHINE, make_sweep

from sweeper.apply.fresh import require_fresh
from sweeper.errors import ModelMissingError, StaleRecordError
from sweeper.model.digest import sha256_of_model


def test_all_parts_of_a_split_model_are_compared(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    for part in parts:
        part.write_bytes(part.name.encode() * 100)
    record = make_sweep(parts[0])
    size = sum(part.stat().st_size for part in parts)
    file = replace(
        record.model.files["Q8_0"], size_bytes=size, sha256=sha256_of_model(parts, tmp_path / "root")
    )
    record = replace(record, model=replace(record.model, files={"Q8_0": file}))
    trial = record.trials[0]
    assert require_fresh(record, trial, MACHINE, ENGINE) == ()
    content = parts[1].read_bytes()
    parts[1].write_bytes(content[:-1] + b"x")
    with pytest.raises(StaleRecordError, match="has another content"):
        require_fresh(record, trial, MACHINE, ENGINE)
    parts[1].write_bytes(content[:-1])
    with pytest.raises(StaleRecordError, match=f"had {size} bytes and has {size - 1}"):
        require_fresh(record, trial, MACHINE, ENGINE)
    parts[1].unlink()
    with pytest.raises(ModelMissingError, match="m-00002-of-00002"):
        require_fresh(record, trial, MACHINE, ENGINE)
