"""Compose and check the configuration. Only this module imports hydra and omegaconf.

The dataclasses below are the schema: an unknown key or a wrong type is a `ConfigError` that names the key.
They are not frozen, because OmegaConf makes frozen schemas read-only before it merges the files into them.
No code changes them afterwards.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args, get_type_hints

from sweeper import spelling
from sweeper.client.prompt_file import read_prompts
from sweeper.errors import ConfigError
from sweeper.metrics import OBJECTIVES, ONLY_WITH_USERS, Direction
from sweeper.model.obtain import ModelConfig
from sweeper.model.texts import texts_of
from sweeper.overrides import PATHS, at_home, flags_as_overrides, for_hydra, split_flags
from sweeper.parameters import PARAMETER_NAMES, TUNABLES
from sweeper.power_settings import PowerSettings, check_settings
from sweeper.records import Constraint, Objective, Prices, Workload

if TYPE_CHECKING:
    from omegaconf import DictConfig

T = TypeVar("T")

# With more objectives, nearly every trial is on the Pareto front, and no plot can show the front.
MOST_OBJECTIVES = 3
# A compiler or an update is often done after a minute. What lasts longer may last for hours.
QUIET_SECONDS = 60.0
# The time for comparing the quality of quantisations and cache types: this much, and at most this share of the minutes.
QUALITY_MINUTES = 10.0
QUALITY_SHARE = 1 / 6
# A sweep of at most this many minutes in all has no time to measure quality beside its trials.
SHORT_MINUTES = 3.0
ENGINES = ("llama_cpp", "llama_server", "endpoint", "simulated", "replay")
SERVES_USERS = ("llama_server", "endpoint")
SAMPLERS = ("auto", "gp_front", "tpe", "gp", "nsga2", "random", "grid")


@dataclass
class EngineConfig:
    """The engine that runs the trials."""

    name: str = "llama_cpp"
    binary: Any = None  # of llama_server: a path or name, or the list of words that start it
    arguments: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    load_timeout_seconds: float = 1800.0
    window_grace_seconds: float = 600.0
    machine: str = "minipc"
    noise: float = 0.02
    table: str | None = None
    url: str | None = None
    model: str | None = None


if TYPE_CHECKING:
    from sweeper.records import Prices as PricesConfig
    from sweeper.records import Workload as WorkloadConfig
else:
    _FILES = {"prompts": str | None}  # the configuration names a file, and the record describes it
    # The records define fields, types and defaults; OmegaConf would make a frozen schema read-only.
    PricesConfig, WorkloadConfig = (
        make_dataclass(
            f"{record.__name__}Config",
            [
                (f.name, _FILES.get(f.name, get_type_hints(record)[f.name]), field(default=f.default))
                for f in fields(record)
            ],
        )
        for record in (Prices, Workload)
    )


@dataclass
class ObjectivesConfig:
    """The direction of each objective, and the bound of each constraint (``"<=0.5"``; null: not in force)."""

    targets: dict[str, str] = field(default_factory=dict)
    constraints: dict[str, str | None] = field(default_factory=dict)


@dataclass
class SearchConfig:
    """The search method and the stopping rules."""

    sampler: str = "auto"
    seed: int = 0
    trials: int | None = 60
    minutes: float | None = None
    patience: int | None = 20
    corners: bool = True
    early_stop: bool = True
    transfer: bool = True
    finalists: int = 5
    control_every: int = 10
    full_depth: bool = True
    pick: str = "within:5%"
    wait_for_quiet: Any = True  # true, false, or seconds

    def quiet_seconds(self) -> float:
        """The longest wait for a quiet machine in s; 0: never wait. Raises ConfigError."""
        value = self.wait_for_quiet
        if isinstance(value, bool):
            return QUIET_SECONDS if value else 0.0
        if not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ConfigError(
                f"search.wait_for_quiet: {value!r} is not true, false or a number of seconds, for example 60"
            )
        return float(value)


@dataclass
class TrackingConfig:
    """The place where MLflow keeps its runs."""

    uri: str | None = None
    experiment: str | None = None


@dataclass
class Settings:
    """The whole configuration except the space. sweeper resolves the space once it knows model and machine."""

    name: str | None = None
    root: str = "mlruns"
    minutes: float | None = None
    prices: PricesConfig = field(default_factory=PricesConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    workload: WorkloadConfig = field(default_factory=WorkloadConfig)
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    power: PowerSettings = field(default_factory=PowerSettings)
    search: SearchConfig = field(default_factory=SearchConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def workload_record(self) -> Workload:
        """The workload as a record. Raises as `read_prompts` does, if the user named a file of prompts."""
        path: Any = self.workload.prompts
        prompts = None if path is None else read_prompts(Path(path)).record
        return Workload(**{**vars(self.workload), "prompts": prompts})

    def quality_seconds(self) -> float:
        """The time in which all comparisons of quality should end, in s."""
        if self.model.quality_minutes is not None:
            return 60 * self.model.quality_minutes
        limits = [QUALITY_SHARE * m for m in (self.minutes, self.search.minutes) if m is not None]
        return 60 * min([*limits, QUALITY_MINUTES])

    def is_short(self) -> bool:
        """Whether the limit of the whole job leaves no time to measure quality."""
        return self.minutes is not None and self.minutes <= SHORT_MINUTES

    def prices_record(self) -> Prices:
        """The prices as a record."""
        return Prices(**vars(self.prices))

    def objective_records(self) -> tuple[Objective, ...]:
        """The objectives in their order. Raises ConfigError."""
        targets = self.objectives.targets
        if not 1 <= len(targets) <= MOST_OBJECTIVES:
            raise ConfigError(f"objectives.targets: {len(targets)} objectives; give one to {MOST_OBJECTIVES}")
        for metric, direction in targets.items():
            _one_of("objectives.targets", metric, OBJECTIVES)
            _one_of(f"objectives.targets.{metric}", direction, get_args(Direction))
        return tuple(Objective(metric, cast(Direction, word)) for metric, word in targets.items())

    def constraint_records(self) -> tuple[Constraint, ...]:
        """The constraints in force. Raises ConfigError."""
        found = []
        for metric, text in self.objectives.constraints.items():
            _one_of("objectives.constraints", metric, OBJECTIVES)
            if text is None:
                continue
            read = spelling.bound(metric, str(text))
            if read is None:
                raise ConfigError(
                    f'objectives.constraints.{metric}: {text!r} is not a bound; write it like "<=0.5" or ">=20"'
                )
            found.append(Constraint(metric, "<=" if read[0] == "<=" else ">=", read[1]))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Composed:
    """A composed configuration: the checked settings, and the space, which is not yet resolved."""

    settings: Settings
    plain: Mapping[str, Any]  # as composed, unresolved; the sweep keeps this
    _tree: Any
    typed: tuple[str, ...] = ()  # the overrides of the command line

    def types(self, key: str) -> bool:
        """Whether the command line sets ``key``, or a part of it."""
        return any(word.partition("=")[0] == key or word.startswith(f"{key}.") for word in self.typed)

    def space(self, facts: Mapping[str, Mapping[str, Any]], skip: Sequence[str] = ()) -> dict[str, Any]:
        """The specification of the space, with ``${model:…}``, ``${machine:…}`` and ``${device:…}`` filled in.

        Args:
            facts: the known values for each of these words.
            skip: keys that this machine cannot set; the values that they refer to may be unknown.

        Raises:
            ConfigError: names the key whose value cannot be resolved.
        """
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        for word, known in facts.items():
            OmegaConf.register_new_resolver(word, _looker_up(word, known), replace=True)
        spec: dict[str, Any] = {}
        for key in map(str, self._tree.space):
            if key in skip:
                spec[key] = self.plain["space"][key]
                continue
            try:
                value = OmegaConf.select(self._tree, f"space.{key}", throw_on_missing=True)
                spec[key] = (
                    OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
                )
            except OmegaConfBaseException as error:
                cause: BaseException = error
                while cause.__cause__ is not None:
                    cause = cause.__cause__
                raise ConfigError(f"space.{key}: {str(cause).splitlines()[0]}") from error
        return spec


def _looker_up(word: str, known: Mapping[str, Any]) -> Callable[[str], Any]:
    def look_up(name: str) -> Any:
        if name not in known:
            raise ConfigError(
                f"${{{word}:{name}}} is unknown; the known names are: {', '.join(known) or 'none here'}"
            )
        if known[name] is None:
            raise ConfigError(f"${{{word}:{name}}} is unknown on this machine; write a number instead")
        return known[name]

    return look_up


# -- composing


def conf_folder() -> Path:
    """The folder of the bundled configuration: inside the wheel, or at the top of a clone."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


def compose(overrides: Sequence[str] = (), config_dir: Path | None = None) -> Composed:
    """Compose and check a configuration without Hydra's command line.

    Raises:
        ConfigError: one line that names the key or file.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    _put_in_front(config_dir)
    GlobalHydra.instance().clear()
    with (
        _one_line_errors(),
        _whole_values(),
        hydra.initialize_config_dir(str(conf_folder()), version_base="1.3", job_name="sweeper"),
    ):
        tree = hydra.compose("config", _for_hydra(overrides))
    return check(tree)


def run_hydra(arguments: Sequence[str], task: Callable[[Composed], int]) -> int:
    """Run ``task`` under Hydra's own command line (``--cfg job``, ``--info``, ``--config-dir``, ``-m`` …).

    Args:
        arguments: the arguments after ``sweeper sweep``.
        task: takes a composed configuration and returns an exit code.

    Returns:
        The highest exit code of all tasks.
    """
    import hydra

    composed: list[Composed] = []
    refused: list[ConfigError] = []

    def entry(tree: DictConfig) -> None:
        try:
            composed.append(replace(check(tree), typed=_typed()))
        except ConfigError as error:
            refused.append(error)  # raised below, because Hydra would print a line of its own about it

    flags, words = split_flags(flags_as_overrides(arguments, Settings, _BESIDE))
    _put_in_front(_config_dir_in(flags))
    own = [*flags, *_for_hydra(words, several=bool({"-m", "--multirun"} & set(flags)))]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors reach this function, which reports them in one line
    argv, sys.argv = sys.argv, ["sweeper sweep", *own]
    try:
        with _one_line_errors(), _whole_values():
            hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(entry)()
    finally:
        sys.argv = argv
    if refused:  # before the first sweep starts
        raise refused[0]
    return max(map(task, composed), default=0)


def _typed() -> tuple[str, ...]:
    """The overrides of the running command, one for each key, as `sweeper sweep` takes them again."""
    from hydra.core.hydra_config import HydraConfig

    found: dict[str, str] = {}
    for word in HydraConfig.get().overrides.task:
        key, equals, value = word.lstrip("+").partition("=")
        bare = re.fullmatch(r"'([^'\\${}\[\](),=:#\s]+)'", value)  # without signs that only quotes keep
        found[key] = f"{key}{equals}{bare[1] if bare and value not in _WORDS else value}"
    return tuple(found.values())


# Text that Hydra would read as something else without its quotes.
_WORDS = ("'null'", "'true'", "'false'")

# The groups of the configuration that are not in the schema.
_BESIDE: Mapping[str, Any] = {"space": dict.fromkeys(PARAMETER_NAMES, Any), "experiment": {}}


def _for_hydra(words: Sequence[str], several: bool = False) -> list[str]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()

    def can_parse(word: str) -> bool:
        try:
            return parser.parse_override(word) is not None
        except HydraException:
            return False

    return for_hydra(words, Settings, _BESIDE, can_parse, several)


def check(tree: DictConfig) -> Composed:
    """Check a composed tree against the schema.

    Raises:
        ConfigError: the tree has an unknown key, a wrong type, an unknown objective, or another error.
    """
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(tree, resolve=False)
    assert isinstance(plain, dict)
    named = {str(key): value for key, value in plain.items() if key != "hydra"}
    for key in _keys_without_value(named):
        raise ConfigError(f"{key}: this key has no value; {_VALUES.get(key, f'give it one with {key}=…')}")
    if not isinstance(named.get("space"), dict):
        raise ConfigError("space: this key must map parameters to values; see conf/space/auto.yaml")
    _demand_groups(named, Settings)
    settings = _filled(Settings, {k: v for k, v in named.items() if k not in ("space", "experiment")})
    _expand_home(settings)
    _check_values(settings)
    _check_space(named["space"])
    return Composed(settings, named, tree)


def _demand_groups(tree: Mapping[str, Any], schema: type, prefix: str = "") -> None:
    """Raise ConfigError if one value stands where the schema has a group of keys."""
    for name, kind in get_type_hints(schema).items():
        if is_dataclass(kind) and name in tree:
            if not isinstance(tree[name], Mapping):
                keys = ", ".join(f"{prefix}{name}.{f.name}" for f in fields(kind))
                raise ConfigError(f"{prefix}{name}: this is a group of keys; set one of them: {keys}")
            _demand_groups(tree[name], cast(type, kind), f"{prefix}{name}.")


def _expand_home(settings: Settings) -> None:
    """Put the home folder in place of ``~`` in the paths of the configuration. Raises ConfigError if one is empty."""
    for key in PATHS:
        *groups, name = key.split(".")
        owner = attrgetter(".".join(groups))(settings) if groups else settings
        value = getattr(owner, name)
        if value == "":
            raise ConfigError(f"{key}: the path is empty; give a path, or leave the key out")
        if isinstance(value, dict):
            value.update({item: at_home(f"{key}.{item}", path) for item, path in value.items()})
        elif isinstance(value, list):
            value[:] = [at_home(key, path) if isinstance(path, str) else path for path in value]
        elif isinstance(value, str):
            setattr(owner, name, at_home(key, value))


def power_settings(plain: Mapping[str, Any]) -> PowerSettings:
    """The power settings from the configuration that a sweep kept. Raises ConfigError."""
    return _filled(PowerSettings, plain)


def _filled(schema: type[T], plain: Mapping[str, Any]) -> T:
    from omegaconf import OmegaConf

    with _one_line_errors():
        filled = OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(dict(plain)))
        )
    assert isinstance(filled, schema)
    return filled


def _keys_without_value(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The keys whose values the user must give (``???`` in the file)."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _keys_without_value(value, f"{prefix}{key}.")
        elif value == "???":
            yield f"{prefix}{key}"


# The lowest allowed value of each number. None stands for no value.
LEAST = {
    "minutes": 0.01,
    "model.quality_tokens": 512,
    "model.quality_minutes": 0.01,
    "workload.prompt_tokens": 1,
    "workload.generated_tokens": 1,
    "workload.screening_repeats": 1,
    "workload.final_repeats": 1,
    "workload.screening_seconds": 0.01,
    "workload.final_seconds": 0.01,
    "workload.n_ctx": 0,
    "workload.users": 1,
    "workload.depth": 0,
    "workload.warmup_seconds": 0,
    "search.trials": 1,
    "search.minutes": 0.01,
    "search.patience": 1,
    "search.finalists": 1,
    "search.control_every": 1,
    "prices.per_kwh": 0,
}


def _check_values(settings: Settings) -> None:
    check_settings(settings.power)
    settings.objective_records()
    settings.constraint_records()
    for key, least in LEAST.items():
        value = attrgetter(key)(settings)
        if value is not None and value < least:
            raise ConfigError(f"{key}: {value:g} is below the lowest allowed value, {least:g}")
    if not 0 <= settings.prices.hours_per_day <= 24:
        raise ConfigError(f"prices.hours_per_day: {settings.prices.hours_per_day:g} is not between 0 and 24")
    settings.search.quiet_seconds()
    if settings.model.draft is not None and settings.engine.name != "llama_server":
        raise ConfigError("model.draft: only engine=llama_server can use a draft model")
    _check_users(settings)
    if settings.model.text is not None:
        texts_of(settings.model.text).read()  # a missing or short text ends the command before a sweep begins
    settings.workload_record()  # a broken file of prompts ends the command before a sweep begins
    _one_of("search.sampler", settings.search.sampler, SAMPLERS)
    _one_of("engine.name", settings.engine.name, ENGINES)
    if settings.name is not None and not re.fullmatch(
        r"[^\s/\\\x00-\x1f][^/\\\x00-\x1f]{0,99}", settings.name
    ):
        raise ConfigError(
            f"name: {settings.name!r} is not a valid name for a sweep; use up to 100 letters, digits, . _ -"
        )


def _check_users(settings: Settings) -> None:
    """Refuse several users of an engine that serves one, and metrics of several users without them."""
    if settings.workload.prompts is not None and settings.engine.name not in SERVES_USERS:
        raise ConfigError(
            "workload.prompts: your own prompts need "
            + " or ".join(f"engine={name}" for name in SERVES_USERS)
            + f", and not engine={settings.engine.name}"
        )
    if settings.workload.users > 1:
        if settings.engine.name not in SERVES_USERS:
            raise ConfigError(
                "workload.users: more than one needs "
                + " or ".join(f"engine={name}" for name in SERVES_USERS)
                + f", and not engine={settings.engine.name}"
            )
        return
    for group in ("targets", "constraints"):
        for metric, value in getattr(settings.objectives, group).items():
            if metric in ONLY_WITH_USERS and value is not None:
                raise ConfigError(
                    f"objectives.{group}.{metric}: only several users have this metric; set workload.users=4, say"
                )


def _check_space(space: Mapping[str, Any]) -> None:
    """Raise ConfigError for a word that no parameter of that name can have, whatever the machine and the model."""
    for name, given in space.items():
        tunable = TUNABLES.get(name)
        if tunable is None:
            continue  # `build_space` says so
        ends = {f".{end}": value for end, value in given.items()} if isinstance(given, Mapping) else {}
        values = given if isinstance(given, list) else [given]
        for end, value in ends.items() or [("", value) for value in values]:
            if not isinstance(value, str) or value == "auto" or "${" in value:
                continue
            if tunable.kind == "flag":
                near = spelling.nearest(value, ("true", "false"))
                raise ConfigError(f"space.{name}: {value!r} is neither true nor false{near}")
            if tunable.kind == "number":
                shown = f"{spelling.examples(name) or '4'}, [1,4] or {{low: 1, high: 8}}"
                raise ConfigError(
                    f"space.{name}{end}: {value!r} is not a whole number; write it like {shown}"
                )
            if tunable.words:
                _one_of(f"space.{name}", value, tunable.words)


def _one_of(key: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        meant = spelling.nearest(value, allowed)
        raise ConfigError(f"{key}: {value!r} is not one of {', '.join(allowed)}{meant}")


# -- Hydra's edges ----------------------------------------------------------------------------------------


def _config_dir_in(arguments: Sequence[str]) -> Path | None:
    """The folder that ``--config-dir`` names, if any. Raises ConfigError if it does not exist."""
    for i, word in enumerate(arguments):
        if word in ("--config-dir", "-cd"):
            named = "".join(arguments[i + 1 : i + 2])
        elif word.startswith("--config-dir="):
            named = word.split("=", 1)[1]
        else:
            continue
        if not Path(named).is_dir():
            raise ConfigError(f"--config-dir: there is no folder {named}")
        return Path(named)
    return None


_in_front: list[Path] = []


def _put_in_front(folder: Path | None) -> None:
    """Give the user's folder precedence over the bundled configuration; Hydra's ``--config-dir`` does not."""
    _in_front[:] = [] if folder is None else [folder.resolve()]
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class UsersFolderFirst(SearchPathPlugin):
        """Puts the folder from ``--config-dir`` first."""

        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for path in _in_front:
                search_path.prepend("sweeper-user", f"file://{path}")

    registered = Plugins.instance().discover(SearchPathPlugin)
    if not any(plugin.__name__ == "UsersFolderFirst" for plugin in registered):
        Plugins.instance().register(UsersFolderFirst)


@contextmanager
def _whole_values() -> Iterator[None]:
    """Let a parameter's value in a space replace the value that it inherits.

    Hydra merges two ranges, and refuses a range in place of a list; it has no option for either.
    """
    from omegaconf import DictConfig, OmegaConf

    merge: Any = DictConfig.merge_with

    def merge_with(here: Any, *others: Any) -> None:
        for other in others:
            old, new = here.get("space"), other.get("space")
            if isinstance(old, DictConfig) and isinstance(new, DictConfig):
                for key, value in new.items_ex(resolve=False):
                    if key in old and OmegaConf.is_config(value):
                        old[key] = None
            merge(here, other)

    setattr(DictConfig, "merge_with", merge_with)  # noqa: B010 - mypy refuses the assignment
    try:
        yield
    finally:
        setattr(DictConfig, "merge_with", merge)  # noqa: B010


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn an error from Hydra, OmegaConf or YAML into a one-line ConfigError."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(_key_error(error)) from error
    except (TypeError, ValueError, LookupError, AttributeError, AssertionError) as error:
        # Hydra does not check every word, such as a number in place of a file: `search=[1]`.
        raise ConfigError(f"Hydra cannot compose this configuration: {_key_error(error)}") from error


_KINDS = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}
_VALUES = {
    "engine.url": "give the server's address: engine.url=http://127.0.0.1:8080",
    "engine.table": "give a table that `sweeper record` wrote: engine.table=FILE.csv.gz",
}


def _key_error(error: BaseException) -> str:
    """One line that names the key, made from the longer messages of Hydra and OmegaConf."""
    from hydra.errors import OverrideParseException

    text = str(error)
    cause = str(error.__cause__ or "")
    if isinstance(error, OverrideParseException):
        word = error.override.lstrip("+")
        if "=" not in word:
            return f"{word}: this is not KEY=VALUE{_meant(word)}"
        return f"{word}: this cannot be read; put the value in quotes ('…') if it has signs such as = , ( ) {{ }}"
    match = re.match(
        r"(?:Ambiguous value for argument|Sweep parameters) '\+*([^\n]*?)'(?: requires|$)", text, re.M
    )
    if match:
        return (
            f"{match.group(1)}: several values need -m, one sweep for each; a list stands in brackets: [a,b]"
        )
    match = re.search(r"Could not override '([^']+)'", text)
    if match:
        return f"{match.group(1)}: no such key{_near_key(match.group(1))}"
    match = re.search(r"Could not (?:find|load) '([^']+)'", text)
    if match:
        available = re.search(r"Available options in '[^']+':\s*(.+?)(?:\n\S|\Z)", text, re.S)
        options = ", ".join(available.group(1).split()) if available else ""
        return f"{match.group(1).replace('/', '=', 1)}: there is no such choice" + (
            f"; choose from {options}{_near_choice(match.group(1), options.split(', '))}" if options else ""
        )
    key = getattr(error, "full_key", None)
    lines = [line.strip() for line in (cause or text).splitlines() if line.strip()]
    first = next(
        (line for line in lines if not line.startswith(("full_key", "object_type"))), type(error).__name__
    )
    wrong = re.match(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", first)
    wrong = wrong or re.match(r"Value '(.*)' is not a valid (\w+)", first)
    if wrong:
        shown = spelling.examples(key) if key and wrong.group(2) in ("Integer", "Float") else ""
        first = f"{wrong.group(1)!r} is not {_KINDS.get(wrong.group(2), wrong.group(2))}"
        first += f"; write it like {shown}" if shown else ""
    if "not in 'Settings'" in first or re.match(r"Key '[^']*' not in", first):
        return f"{key}: no such key"
    return f"{key}: {first}" if key else first


def _meant(word: str) -> str:
    """What a word without ``=`` may stand for: a choice of a group, a group, or a key with another sign."""
    choices = group_choices()
    if word in choices:
        return f"; write {word}=CHOICE, with one of {', '.join(choices[word])}"
    groups = [group for group in ("experiment", *choices) if word in choices[group]]
    if groups:
        return f"; did you mean {groups[0]}={word}?"
    key, sign, value = word.partition(":") if ":" in word else (word, "", "")
    if sign:
        return f"; write {key}={value}"
    if any(key == f"{group}.{name}".lstrip(".") for group, names in _known_keys().items() for name in names):
        return f"; write {key}=VALUE"
    return ", such as search.trials=20; a model file ends in .gguf"


def _near_choice(choice: str, options: Sequence[str]) -> str:
    """The advice for an unknown choice of a group, which Hydra writes as ``group/choice``."""
    group, _, name = choice.partition("/")
    if group == "model" and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return f"; a repository of the Hugging Face hub: model=hub model.repo={name} model.file=FILE.gguf"
    return spelling.nearest(name, options)


def group_choices() -> dict[str, tuple[str, ...]]:
    """The names of the bundled files of each configuration group."""
    folders = sorted(path for path in conf_folder().iterdir() if path.is_dir())
    return {folder.name: tuple(sorted(file.stem for file in folder.glob("*.yaml"))) for folder in folders}


def _near_key(key: str) -> str:
    """The advice for an unknown key: a similar key, or all keys of its group."""
    group, _, name = key.rpartition(".")
    known = _known_keys()
    near = [
        f"{group}.{word}".lstrip(".") for word in difflib.get_close_matches(name, known.get(group, ()), 1)
    ]
    if not near:
        every = {f"{other}.{word}": word for other, words in known.items() if other for word in words}
        near = difflib.get_close_matches(key, every, 1, 0.8)
        near = near or [
            full for full, word in every.items() if difflib.get_close_matches(name, [word], 1, 0.8)
        ]
    if near:
        return f"; did you mean {' or '.join(near)}?"
    if group not in known:
        return "; see `sweeper sweep --cfg job`"
    return f"; {f'the keys of {group}' if group else 'the keys'} are: {', '.join(known[group])}"


def _known_keys() -> dict[str, tuple[str, ...]]:
    """The keys of each group of the configuration; those at the top stand under an empty name."""
    groups = {name: schema for name, schema in get_type_hints(Settings).items() if is_dataclass(schema)}
    known = {name: tuple(f.name for f in fields(schema)) for name, schema in groups.items()}
    return known | {"space": PARAMETER_NAMES, "": (*groups, "space", "name", "root", "experiment")}
