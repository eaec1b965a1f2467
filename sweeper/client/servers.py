"""The kinds of servers: their models, their settings in force, and one timed answer.

No server reports every setting. One that it does not report is left out, never guessed.

Requests name no temperature and no other sampling option: the promise is for a client that sends none.
At temperature 0, llama-cpp-python's server runs another sampler than for such a client.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from sweeper.client.in_force import (
    from_llama_cpp_python,
    from_llama_server_argv,
    from_log,
    from_ollama_parameters,
    slots_that_share,
)
from sweeper.errors import EngineMissingError, VerifyError
from sweeper.http import NoSuchPageError, get, is_loopback, post
from sweeper.servers import command_line_of_port

_SEED = 42  # so that an answer to one prompt always ends at the same token, or never
_SEEDS = 3  # that llama-cpp-python's server tries, until an answer does not end early


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer, as its client saw it. ``own_…`` is the server's own figure, in tok/s."""

    prompt_tokens: int
    generated_tokens: int
    seconds: float
    own_tokens_per_second: float | None = None
    own_prompt_tokens_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class InForce:
    """A setting as the server has it, and where sweeper read it."""

    value: Any
    read_from: str


class Server(Protocol):
    """A running server."""

    kind: str  # ``llama-server``, ``llama-cpp-python`` or ``ollama``
    url: str  # without a slash at its end

    def offered(self) -> Mapping[str, str | None]:
        """The models' names, with their files where the server reports them."""
        ...

    def in_force(self, name: str) -> Mapping[str, InForce]:
        """The settings of a loaded model by sweeper's names, as far as they can be read."""
        ...

    def generate(self, name: str, prompt: str, tokens: int) -> Generation:
        """Generate exactly ``tokens``, even if the model would end earlier; Ollama cannot force that."""
        ...


@dataclass(slots=True)
class LlamaServer:
    """llama.cpp's own server, alone or as a router."""

    url: str
    kind: str = "llama-server"
    pid: int | None = None  # if sweeper started it
    key: str | None = field(default=None, repr=False)

    def offered(self) -> Mapping[str, str | None]:
        """A router offers every preset; a server of one model offers its alias."""
        found = {name: from_llama_server_argv(argv).get("model") for name, argv in self._models().items()}
        if len(found) == 1 and None in found.values():
            found = dict.fromkeys(found, get(f"{self.url}/props", key=self.key).get("model_path"))
        return found

    def in_force(self, name: str) -> Mapping[str, InForce]:
        """The router's list of arguments, else the process's command line; the context from ``/props``."""
        argv, source = self._models().get(name), "/models"
        if not argv:
            argv, source = _command_line(self.url, self.pid), "its command line"
        settings = _all_from(source, from_llama_server_argv(argv))
        props = get(f"{self.url}/props?model={quote(name, safe='')}", key=self.key)
        context = (props.get("default_generation_settings") or {}).get("n_ctx")
        if context:
            settings["n_ctx"] = InForce(int(context) // slots_that_share(argv), "/props")
        if props.get("model_path"):
            settings["model"] = InForce(props["model_path"], "/props")
        return settings

    def _models(self) -> dict[str, list[str]]:
        """The arguments of each model's own process; empty where it has none."""
        models = get(f"{self.url}/models", key=self.key)["data"]
        return {model["id"]: (model.get("status") or {}).get("args") or [] for model in models}

    def generate(self, name: str, prompt: str, tokens: int) -> Generation:
        """``ignore_eos`` keeps a model from ending early."""
        body = {"model": name, "prompt": prompt, "n_predict": tokens, "ignore_eos": True, "seed": _SEED}
        answer, seconds = _timed_post(f"{self.url}/completion", body, self.key)
        timings = answer.get("timings") or {}
        return Generation(
            prompt_tokens=int(answer["tokens_evaluated"]),
            generated_tokens=int(answer["tokens_predicted"]),
            seconds=seconds,
            own_tokens_per_second=timings.get("predicted_per_second"),
            own_prompt_tokens_per_second=timings.get("prompt_per_second"),
        )


@dataclass(slots=True)
class LlamaCppPythonServer:
    """``python -m llama_cpp.server``, which reports neither its settings nor timings."""

    url: str
    kind: str = "llama-cpp-python"
    pid: int | None = None
    log: Path | None = None  # if sweeper started it, verbose
    key: str | None = field(default=None, repr=False)
    _seed: int = field(default=_SEED, init=False)

    def offered(self) -> Mapping[str, str | None]:
        """The aliases, with the files that the process's own configuration names."""
        models = self._models()
        return {
            model["id"]: models.get(model["id"], {}).get("model")
            for model in get(f"{self.url}/v1/models", key=self.key)["data"]
        }

    def in_force(self, name: str) -> Mapping[str, InForce]:
        """What llama.cpp logged at the load, if sweeper started it; else the process's configuration."""
        model = self._models().get(name)
        settings = {} if model is None else _all_from("its configuration", from_llama_cpp_python(model))
        if self.log is not None:
            settings |= _all_from("its log", from_log(self.log.read_text("utf-8", "replace")))
        return settings

    def _models(self) -> dict[str, dict[str, Any]]:
        """The settings of each model by its alias, from the process's command line or the file named there."""
        options: dict[str, Any] = {}
        argv = _command_line(self.url, self.pid)
        for word, following in itertools.zip_longest(argv, argv[1:], fillvalue=""):
            if word.startswith("--"):
                key, equals, value = word[2:].partition("=")
                options[key] = value if equals else following
        models: Any = [options]
        if "config_file" in options:
            try:
                models = json.loads(Path(options["config_file"]).read_text("utf-8"))["models"]
            except (OSError, ValueError, LookupError, TypeError):
                return {}  # gone or YAML: the server's settings stay unknown
        known = (
            [m for m in models if isinstance(m, dict) and "model" in m] if isinstance(models, list) else []
        )
        return {model.get("model_alias") or model["model"]: model for model in known}

    def generate(self, name: str, prompt: str, tokens: int) -> Generation:
        """Asks again with another seed if the model ended early.

        After some seeds, it asks with ``min_tokens``. That option costs the server time, so not before.
        """
        body: dict[str, Any] = {"model": name, "prompt": prompt, "max_tokens": tokens}
        while True:
            body["seed"] = self._seed
            last = self._seed == _SEED + _SEEDS
            if last:
                body["min_tokens"] = tokens
            answer, seconds = _timed_post(f"{self.url}/v1/completions", body, self.key)
            made = int(answer["usage"]["completion_tokens"])
            if made >= tokens:
                return Generation(int(answer["usage"]["prompt_tokens"]), made, seconds)
            if last:
                raise VerifyError(
                    f"{self.url} ends after {made} of {tokens} tokens, so its speed cannot be measured: "
                    "set workload.generated_tokens lower"
                )
            self._seed += 1


@dataclass(slots=True)
class OllamaServer:
    """Ollama. It cannot keep a model from ending early, so the tokens that it generated are counted."""

    url: str
    kind: str = "ollama"
    key: str | None = field(default=None, repr=False)

    def offered(self) -> Mapping[str, str | None]:
        """Every installed model, with and without the tag ``latest``."""
        names = [model["name"] for model in get(f"{self.url}/api/tags", key=self.key)["models"]]
        return dict.fromkeys([*names, *(n.removesuffix(":latest") for n in names)])

    def in_force(self, name: str) -> Mapping[str, InForce]:
        """Parameters from ``/api/show``; context and layers from ``/api/ps``, if the model is loaded."""
        shown = post(f"{self.url}/api/show", {"model": name}, 30.0, self.key)
        settings = _all_from("/api/show", from_ollama_parameters(shown.get("parameters") or ""))
        blob = re.search(r"^FROM\s+\S*sha256[-:]([0-9a-f]{64})", shown.get("modelfile") or "", re.MULTILINE)
        if blob:
            settings["sha256"] = InForce(blob.group(1), "/api/show")
        for model in get(f"{self.url}/api/ps", key=self.key).get("models", []):
            if model.get("name", "").removesuffix(":latest") == name.removesuffix(":latest"):
                if model.get("context_length"):
                    settings["n_ctx"] = InForce(int(model["context_length"]), "/api/ps")
                if model.get("size_vram") == 0:
                    settings["n_gpu_layers"] = InForce(0, "/api/ps")
        return settings

    def generate(self, name: str, prompt: str, tokens: int) -> Generation:
        """Sent raw, so that no template lengthens the prompt."""
        options = {"num_predict": tokens, "seed": _SEED}
        body = {"model": name, "prompt": prompt, "raw": True, "stream": False, "options": options}
        answer, seconds = _timed_post(f"{self.url}/api/generate", body, self.key)

        def per_second(what: str) -> float | None:
            count, nanoseconds = answer.get(f"{what}_count"), answer.get(f"{what}_duration")
            return count / (nanoseconds / 1e9) if count and nanoseconds else None

        return Generation(
            prompt_tokens=int(answer.get("prompt_eval_count") or 0),
            generated_tokens=int(answer.get("eval_count") or 0),
            seconds=seconds,
            own_tokens_per_second=per_second("eval"),
            own_prompt_tokens_per_second=per_second("prompt_eval"),
        )


def detect(url: str, key: str | None = None, seconds: float = 10.0) -> Server:
    """The server at ``url``, recognised by a page that only its kind has. Each request may take ``seconds``.

    Some builds of llama-server have Ollama's page as well, so its own page comes first.

    Raises:
        EngineMissingError: nothing listens there, or something else than these three servers.
    """
    url = url.rstrip("/")
    pages: dict[str, Callable[..., Server]] = {
        "/props": LlamaServer,
        "/api/tags": OllamaServer,
        "/v1/models": LlamaCppPythonServer,
    }
    for page, server in pages.items():
        try:
            answer = get(url + page, seconds, key)
        except NoSuchPageError:
            continue
        if page != "/api/tags" or "models" in answer:
            return server(url, key=key)
    raise EngineMissingError(
        f"what answers at {url} is none of llama-server, llama-cpp-python, ollama: "
        "give the address of one with --url"
    )


def _all_from(source: str, values: Mapping[str, Any]) -> dict[str, InForce]:
    return {key: InForce(value, source) for key, value in values.items()}


def _timed_post(url: str, body: dict[str, Any], key: str | None) -> tuple[Any, float]:
    started = time.perf_counter()
    answer = post(url, body, key=key)
    return answer, time.perf_counter() - started


def _command_line(url: str, pid: int | None) -> list[str]:
    """The command line of a server on this machine; empty if it runs elsewhere, or may not be seen."""
    if not is_loopback(url):
        return []
    parts = urlsplit(url)
    return command_line_of_port(parts.port or (443 if parts.scheme == "https" else 80), pid)
