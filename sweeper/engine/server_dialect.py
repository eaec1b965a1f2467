"""What one build of llama-server understands: its options, its version and its devices.

Builds differ. Old ones have ``--no-mmap`` and ``--mlock`` where new ones have ``--load-mode``, and forks have switches
where llama.cpp has values. So nothing here asks for a version: the program's own ``--help`` decides.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sweeper.client.llama_options import DRAFT, DRAFT_SPELLINGS, Option
from sweeper.errors import EngineMissingError, UsageError
from sweeper.model.header import GgufHeader
from sweeper.parameters import SERVER_TUNABLES, SPECULATION, Configuration, Tunable, server_context

_ASK_SECONDS = 60.0  # a container may have to start first
_REMOVED = "has been removed"
# Options that every llama-server has. A program without them is something else.
_ESSENTIAL = ("ctx-size", "port", "parallel")
_NAMES = re.compile(
    r"\s{0,12}((?:--?[A-Za-z][\w.-]*,\s+)*--?[A-Za-z][\w.-]*)(?:[ =](?! )(\S+(?: \S+)*))?(?:\s{2,}(.*))?$"
)
_VARIABLE = re.compile(r"\(env: (\w+)\)")
_DEFAULT = re.compile(r"\(default: ?'?([^,'()]+)")
_DEVICE = re.compile(r"^\s+(\w+): (.+) \((\d+) MiB, (\d+) MiB free\)$", re.MULTILINE)
_FOUND = re.compile(r"found [1-9]\d* \w+ devices")  # what CUDA, ROCm and Vulkan print when they start
_NO_GPU = ("CPU", "BLAS", "AMX", "ACCEL")
# A number of layers beyond that of any model, for builds that do not know the word `all`.
_EVERY_LAYER = "9999"
# What sweeper itself sets, and what would let strangers or another model in.
OWN = (
    *("host", "port", "api-key", "api-key-file", "alias", "path", "api-prefix", "reuse-port"),
    *("ssl-key-file", "ssl-cert-file", "models-dir", "models-preset", "models-max", "models-autoload"),
    *("no-models-autoload", "tools", "tools-runtime", "agent", "no-agent", "mcp-servers-config"),
    *(
        "mcp-servers-json",
        "model",
        "model-url",
        "hf-repo",
        "hf-file",
        "docker-repo",
        "cache-ram",
        "verbosity",
    ),
    *("log-verbosity", "log-file", "log-disable", "parallel", "load-mode", "embedding", "rerank", "warmup"),
    *("sleep-idle-seconds", "slots", "no-slots", "version", "help", "list-devices"),
)


@dataclass(frozen=True, slots=True)
class Help:
    """One option in the program's help. ``value`` is None for a switch."""

    names: tuple[str, ...]  # with their dashes
    value: str | None
    text: str

    @property
    def default(self) -> str | None:
        """The default value that the text names."""
        found = _DEFAULT.search(self.text)
        return found[1].strip() if found else None


def parse_help(text: str) -> dict[str, Help]:
    """The options by each of their names, without those that the help calls removed."""
    entries: list[tuple[re.Match[str], list[str]]] = []
    for line in text.splitlines():
        if line.lstrip().startswith("-") and (found := _NAMES.match(line)):
            entries.append((found, [found[3] or ""]))
        elif entries:
            entries[-1][1].append(line.strip())
    options = {}
    for found, lines in entries:
        words = " ".join(lines).strip()
        names = tuple(name.strip() for name in found[1].split(","))
        if _REMOVED not in words:
            options.update(dict.fromkeys(names, Help(names, found[2], words)))
    return options


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU that this build can use, under its own name, for example ``CUDA0``. Memory in MiB."""

    name: str
    description: str
    total_mib: int
    free_mib: int


def parse_devices(text: str) -> tuple[Device, ...]:
    """The GPUs in the answer to ``--list-devices``."""
    return tuple(
        Device(name, description, int(total), int(free))
        for name, description, total, free in _DEVICE.findall(text)
        if not name.startswith(_NO_GPU)
    )


@dataclass(frozen=True, slots=True)
class Dialect:
    """The options, version and devices of one program, which ``program`` starts."""

    program: tuple[str, ...]
    options: Mapping[str, Help]
    version: str
    devices: tuple[Device, ...] = ()
    gpu_offload: bool = field(default=False)

    def find(self, *keys: str) -> str | None:
        """The first of these names, without dashes, that the program knows; with its dashes."""
        return next(
            (dashes + key for key in keys for dashes in ("--", "-") if dashes + key in self.options), None
        )

    def keys(self) -> frozenset[str]:
        """The options of sweeper's parameters that can be set here, by their names in `sweeper.parameters`."""
        return frozenset(t.option for t in SERVER_TUNABLES if t.option and self._can_set(t))

    def _can_set(self, tunable: Tunable) -> bool:
        assert tunable.option is not None
        name = self.find(tunable.option, *tunable.spellings)
        if name is None:
            return tunable.is_switch and self.find(f"no-{tunable.option}") is not None
        # `--cpu-moe` is an old switch for all layers, and no `--n-cpu-moe N`.
        return tunable.kind == "flag" or self.options[name].value is not None

    def speculation(self) -> frozenset[str]:
        """The kinds of speculation that the program lists; without an option for a draft model, none that needs it."""
        name = self.find("spec-type")
        if name is None:
            return frozenset()
        entry = self.options[name]
        listed = set(SPECULATION).intersection(re.findall(r"[\w-]+", f"{entry.value} {entry.text}"))
        if self.find(DRAFT, *DRAFT_SPELLINGS) is None:
            listed = {kind for kind in listed if not kind.startswith("draft") or kind == "draft-mtp"}
        return frozenset(listed)

    def words(self, options: Iterable[Option]) -> list[str]:
        """The command line of these options. One that this build lacks is left out."""
        return [word for option in options for word in self._words(option)]

    def _words(self, option: Option) -> Sequence[str]:
        if option.value is None:
            return ()
        if option.key == "load-mode" and self.find("load-mode") is None:
            return self._old_load_mode(option.value)
        name = self.find(option.key, *(() if option.switch else option.spellings))
        off = self.find(f"no-{option.key}", *(f"no-{spelling}" for spelling in option.spellings))
        if option.switch or (name is not None and self.options[name].value is None):
            wanted = name if option.value == "on" else off
            return (wanted,) if wanted else ()
        if name is None:
            return ()
        if option.value == "auto" and "auto" not in f"{self.options[name].value} {self.options[name].text}":
            return ()
        if option.value == "all" and "all" not in f"{self.options[name].value} {self.options[name].text}":
            return (name, _EVERY_LAYER)
        return (name, option.value)

    def _old_load_mode(self, mode: str) -> list[str]:
        wanted = ["mlock"] if "mlock" in mode else []
        wanted += [] if "mmap" in mode else ["no-mmap"]
        return [name for key in wanted if (name := self.find(key)) is not None]

    def own_words(self) -> list[str]:
        """The options that a truthful measurement needs: one prompt cache, a log that tells, and no pages."""
        words = []
        log = self.find("log-verbosity", "verbosity", "lv")
        if log is not None and "trace" in self.options[log].text:
            words += [log, "4"]  # the default hides sizes of buffers; builds without levels print them anyway
        if (cache := self.find("cache-ram")) is not None:
            words += [cache, "0"]
        words += [name for key in ("no-ui", "no-webui") if (name := self.find(key)) is not None][:1]
        words += [name for name in [self.find("no-warmup")] if name is not None]
        return words

    def sampling(self) -> str:
        """The sampling of a client that sends none, in words."""
        known = (("temperature", "temp"), ("top-k", "top-k"), ("top-p", "top-p"), ("min-p", "min-p"))
        found = ((words, self.options[name].default) for words, key in known if (name := self.find(key)))
        return ", ".join(f"{words} {default}" for words, default in found if default)

    def variables(self, environment: Mapping[str, str]) -> tuple[str, ...]:
        """The variables of an environment that would change this server's settings."""
        named = {name for entry in self.options.values() for name in _VARIABLE.findall(entry.text)}
        own = named - {"HF_TOKEN"}
        return tuple(sorted(name for name in environment if name.startswith("LLAMA_ARG_") or name in own))

    def check(self, arguments: Sequence[str]) -> None:
        """Raise UsageError for additional arguments that the program lacks, or that sweeper sets itself."""
        drafts = {DRAFT, *DRAFT_SPELLINGS}
        reserved = {
            *OWN,
            *drafts,
            *(key for t in SERVER_TUNABLES if t.option for key in (t.option, *t.spellings)),
        }
        for word in arguments:
            if not re.match(r"--?[A-Za-z]", word):
                continue
            name = word.partition("=")[0]
            entry = self.options.get(name)
            keys = {n.lstrip("-") for n in (entry.names if entry else (name,))}
            keys |= {key.removeprefix("no-") for key in keys}
            if keys & reserved:
                mine = next(
                    (t.name for t in SERVER_TUNABLES if t.option and {t.option, *t.spellings} & keys), None
                )
                how = f"set space.{mine}" if mine else "leave it out"
                how = "set model.draft" if keys & drafts else how
                raise UsageError(f"engine.arguments: sweeper sets {name} itself: {how}")
            if entry is None:
                raise UsageError(f"engine.arguments: {self.program[0]} knows no {name}: see its --help")


def program_of(binary: str | Sequence[str]) -> tuple[str, ...]:
    """The words that start the server. A name is looked up on the PATH, then beside the Python that runs.

    Raises:
        EngineMissingError: there is no such program, or it is not executable.
        UsageError: no word at all.
    """
    words = [binary] if isinstance(binary, str) else [str(word) for word in binary]
    if not words or not words[0]:
        raise UsageError("engine.binary: it is empty; give the path of a llama-server")
    named = os.path.expanduser(words[0])
    beside = Path(sys.executable).parent / named
    found = shutil.which(named) or (shutil.which(str(beside)) if "/" not in named else None)
    if found is None:
        if os.path.isdir(named):
            raise EngineMissingError(
                f"engine.binary: {named} is a folder: give the path of the llama-server in it"
            )
        if os.path.isfile(named):
            raise EngineMissingError(f"engine.binary: {named} is not executable: `chmod +x {named}`")
        where = "there is no such file" if "/" in named else "it is not on the PATH"
        raise EngineMissingError(
            f"engine.binary: cannot start {named} ({where}): install llama.cpp, or set engine.binary=PATH"
        )
    return (os.path.abspath(found), *words[1:])


def dialect_of(program: tuple[str, ...], environment: Mapping[str, str]) -> Dialect:
    """Ask a program for its help, version and devices; ``environment`` is the server's whole environment.

    Raises:
        EngineMissingError: the program cannot run here, or it is no llama-server.
    """
    options = parse_help(_ask(program, "--help", environment))
    if not all(f"--{key}" in options for key in _ESSENTIAL):
        raise EngineMissingError(
            f"engine.binary: {' '.join(program)} is not a llama-server (its --help names no "
            f"--{next(key for key in _ESSENTIAL if f'--{key}' not in options)}): give the path of one"
        )
    said = _ask(program, "--version", environment) if "--version" in options else ""
    devices: tuple[Device, ...] = ()
    offload = bool(_FOUND.search(said))
    if "--list-devices" in options:
        devices = parse_devices(_ask(program, "--list-devices", environment))
        offload = bool(devices)
    return Dialect(program, options, _version_in(said), devices, offload)


def build_of(program: tuple[str, ...], environment: Mapping[str, str]) -> str:
    """The version and build that a llama-server names, or ``unknown``. Raises EngineMissingError if it cannot run."""
    return _version_in(_ask(program, "--version", environment))


def _version_in(text: str) -> str:
    found = re.search(r"^version: *(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else "unknown"


def perplexity_tool(server: Dialect, environment: Mapping[str, str]) -> Dialect | None:
    """The ``llama-perplexity`` beside a server; None if there is none, or it cannot compare two models.

    Raises:
        EngineMissingError: it cannot run here.
    """
    program = Path(server.program[0]).with_name("llama-perplexity")
    if len(server.program) > 1 or not os.access(program, os.X_OK):
        return None
    options = parse_help(_ask((str(program),), "--help", environment))
    if "--kl-divergence-base" not in options:
        return None
    return Dialect((str(program),), options, server.version, server.devices, server.gpu_offload)


def fitted(dialect: Dialect, configuration: Configuration, header: GgufHeader) -> dict[str, int] | None:
    """The placement that ``llama-fit-params`` beside the server prints; None without an answer.

    It prints options such as ``-c 4096 -ngl 49 -ot PATTERN=CPU,…``, with one pattern for each layer whose experts stay
    on the CPU.
    """
    program = Path(dialect.program[0]).with_name("llama-fit-params")
    if len(dialect.program) > 1 or not os.access(program, os.X_OK):
        return None
    c = configuration
    words = [
        "-m",
        str(header.path),
        "-c",
        str(server_context(c)),
        "-b",
        str(c.n_batch),
        "-ub",
        str(c.n_ubatch),
    ]
    words += ["-ctk", c.type_k, "-ctv", c.type_v]
    try:
        done = subprocess.run(
            [str(program), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ASK_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None  # the server itself tells its placement, only later
    return (
        parse_fitted(done.stdout.decode("utf-8", "replace"), header.n_layer) if done.returncode == 0 else None
    )


def parse_fitted(text: str, n_layer: int) -> dict[str, int] | None:
    """``n_gpu_layers`` and ``n_cpu_moe`` of the options that ``llama-fit-params`` prints; None if it prints none."""
    layers = re.search(r"(?:^|\s)-ngl (-?\d+)", text)
    if layers is None:
        return None
    count, every = int(layers[1]), n_layer + 1
    experts = set(re.findall(r"blk\\?\.(\d+)\\?\.ffn_[^=,\s]*exps[^=,\s]*=CPU", text))
    whole = re.search(r"(?:^|\s)-ncmoe (\d+)", text)
    return {
        "n_gpu_layers": count if 0 <= count < every else every,
        "n_cpu_moe": int(whole[1]) if whole else len(experts),
    }


def wrong_processor(program: str) -> EngineMissingError:
    """The error for a program that died of SIGILL."""
    return EngineMissingError(
        f"{program} was built for another processor (it died of SIGILL): build llama.cpp on this machine, or give "
        "another engine.binary"
    )


def _ask(program: tuple[str, ...], question: str, environment: Mapping[str, str]) -> str:
    name = " ".join(program)
    try:
        done = subprocess.run(
            [*program, question],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            timeout=_ASK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise EngineMissingError(
            f"engine.binary: {name} {question} gave no answer within {_ASK_SECONDS:.0f} s: give a llama-server"
        ) from None
    except OSError as error:
        raise EngineMissingError(
            f"engine.binary: cannot start {name} ({error.strerror}): give a llama-server for this machine"
        ) from error
    if done.returncode == -signal.SIGILL:
        raise wrong_processor(name)
    text = done.stdout.decode("utf-8", "replace")
    if done.returncode < 0:
        raise EngineMissingError(
            f"engine.binary: {name} {question} died of {signal.Signals(-done.returncode).name}: "
            "give a llama-server for this machine"
        )
    if done.returncode in (126, 127) and len(text) < 1000:  # a shell or a container found no such program
        raise EngineMissingError(f"engine.binary: {name} cannot start: {' '.join(text.split())}")
    return text
