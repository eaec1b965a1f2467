"""The server of llama-cpp-python: ``python -m llama_cpp.server --config_file FILE``.

The server reads the environment (``N_CTX``, ``MODEL``, …) for every key that the file omits, and its defaults
are not llama.cpp's. So sweeper writes every key.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from sweeper.apply.base import LOOPBACK, Command, Draft, Request, change, not_settable, read_text
from sweeper.apply.kept import kept_note
from sweeper.errors import UsageError
from sweeper.model.ggml_types import CACHE_TYPE_NUMBERS
from sweeper.parameters import SERVER_TUNABLES, SPLIT_MODES, Configuration, Tunable, proportions

SETTINGS = tuple(t for t in SERVER_TUNABLES if t.in_llama_cpp_python)
SETTABLE = {tunable.name for tunable in SETTINGS}


def _setting(tunable: Tunable, value: Any) -> Any:
    """A value as ``ModelSettings`` takes it: integers for split modes and cache types, a list for a split."""
    if tunable.name == "tensor_split" and value is not None:
        return list(proportions(value))
    if tunable.kind != "word" or value is None:
        return value
    return (SPLIT_MODES if tunable.name == "split_mode" else CACHE_TYPE_NUMBERS)[value]


def model_settings(configuration: Configuration, model_path: str, name: str) -> dict[str, Any]:
    """Every key of ``ModelSettings`` that decides speed or watts."""
    return {
        "model": model_path,
        "model_alias": name,
        **{t.name: _setting(t, getattr(configuration, t.name)) for t in SETTINGS},
        "logits_all": False,  # the server's default keeps the logits of every prompt token
        "embedding": False,
        "cache": False,
        "verbose": False,
    }


def draft(request: Request) -> Draft:
    """Put the model first, since the server loads the first one; the file keeps the others."""
    path = request.target_file("llama-cpp-python.json")
    ours = model_settings(request.configuration, request.model_path, request.name)
    existing = _existing(path)
    models: list[dict[str, Any]] = existing.get("models", [])
    others = [m for m in models if m.get("model_alias") != request.name]
    before = dict(next((m for m in models if m.get("model_alias") == request.name), {}))
    before.pop("hf_model_repo_id", None)  # with it, the server looks for the model's path in that repository
    settings = {
        **existing,
        "host": LOOPBACK,
        "port": request.port,
        "models": [{**before, **ours}, *others],
    }
    says = (
        "puts this model first, keeps all other settings and reformats the file" if existing else "a new file"
    )
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    if re.search("[\ud800-\udfff]", text):  # half a character, which UTF-8 cannot hold
        text = json.dumps(settings, indent=2) + "\n"
    kept = [key for key, value in before.items() if key not in ours and value not in (None, False)]
    argv = (sys.executable, "-m", "llama_cpp.server", "--config_file", str(path))
    return Draft(
        files=(change(path, text, says),),
        commands=(Command("start the server", argv, request.environment),),
        notes=(
            "the environment variables HOST, PORT and CONFIG_FILE override this file; set none of them",
            *not_settable(request.configuration, "llama_cpp.server", SETTABLE),
            *kept_note(f"the model {request.name}", kept),
        ),
    )


def _existing(path: Path) -> dict[str, Any]:
    text = read_text(path)
    if text is None or not text.strip():
        return {}
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{path} is not JSON (line {error.lineno}: {error.msg}): mend it, or name another file"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of brackets
        raise UsageError(f"{path} is JSON that sweeper cannot read ({error}): name another file") from error
    models = data.get("models", []) if isinstance(data, dict) else None
    if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
        raise UsageError(
            f"{path} is not a configuration of llama_cpp.server (no list `models`): name another file"
        )
    return dict(data)
