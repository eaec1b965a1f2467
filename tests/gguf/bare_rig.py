"""A rig with a real model and nothing else."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from sweeper.model.obtain import ModelConfig, obtain
from sweeper.records import EngineRecord
from sweeper.rig.base import Rig


def rig_of(path: Path, root: Path) -> Rig:
    """A rig with the model at ``path``, whose quality can be measured."""
    given: dict[str, Any] = {field.name: None for field in fields(Rig) if field.default is MISSING}
    given |= {
        "engine_record": EngineRecord("llama_cpp", "1"),
        "model": obtain(ModelConfig(path=str(path)), root),
    }
    return Rig(
        **given
        | {
            "notes": (),
            "use_files": lambda _: None,
            "make_room": lambda *_: None,
        }
    )
