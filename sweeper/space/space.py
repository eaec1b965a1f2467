"""The search space: searched and fixed parameters, settings that cannot run, and settings with the same effect.

A space file (``conf/space/*.yaml``) uses Optuna's terms: a mapping with ``low`` and ``high`` is a range, a list is a
choice, a scalar is fixed. This module turns it into parameters with finitely many ordered values. Every sampler, the
grid and the tables then use the same points.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from sweeper.errors import SpaceError
from sweeper.parameters import (
    DEFAULTS,
    PARAMETER_NAMES,
    QUANTISED_CACHE_TYPES,
    TUNABLES,
    Configuration,
    Tunable,
    changes_nothing,
    clamped,
    padded,
    proportions,
)

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

# With more threads, llama.cpp's thread pool crashes (GGML_MAX_N_THREADS is 512).
MOST_THREADS = 512


@dataclass(frozen=True, slots=True)
class Parameter:
    """One searched parameter, with all its values in order."""

    name: str
    values: tuple[Any, ...]
    ordinal: bool  # neighbouring `values` have similar effects
    range_step: int | None = None  # the step of evenly spaced integers


@dataclass(frozen=True, slots=True)
class Traits:
    """Facts about the machine, the engine and the workload that decide which configurations can run."""

    n_layer: int = 0  # offloadable layers of the model; n_gpu_layers counts one more for the output
    gpu_offload: bool = False
    prompt_tokens: int = 512
    n_ctx_needed: int = 1
    n_ctx_train: int = 0  # 0: unknown
    has_experts: bool = False
    gpus: int | None = None  # None: unknown
    engine: str | None = None  # the engine's name; None: unknown
    quants: tuple[str, ...] = ()
    fills_context: bool = False  # windows run as deep as the context allows


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """The searched parameters, and a base configuration for the others."""

    parameters: Mapping[str, Parameter]
    base: Configuration
    traits: Traits = field(default_factory=Traits)
    # The point whose placement is the one that llama-server chooses itself. It runs with `fit`, as the baseline, and so
    # does the same point with another context.
    own_placement: Configuration | None = None

    @property
    def fixed(self) -> dict[str, Any]:
        """The parameters that are not searched."""
        return {k: v for k, v in self.base.to_dict().items() if k not in self.parameters}

    @property
    def size(self) -> int:
        """Number of combinations of values, before constraints apply and equal combinations are merged."""
        return math.prod(len(p.values) for p in self.parameters.values())

    def configuration(self, params: Mapping[str, Any]) -> Configuration:
        """The configuration of a point. Points that llama.cpp makes equal have the same configuration.

        If several values of a parameter have the same effect (see `effective`), the first one stands for all of them,
        so the result is always a point of this space.
        """
        traits = self.traits
        facts = (traits.gpu_offload, traits.has_experts, traits.gpus, traits.engine)
        inert = [n for n in DEFAULTS if changes_nothing(n, *facts)]
        asked = self.base.with_(**{**params, **{name: DEFAULTS[name] for name in inert}})
        n_ctx, n_batch, n_ubatch, n_gpu_layers = effective(asked, traits)
        tokens = traits.prompt_tokens or n_ctx
        context = self._first(
            "n_ctx", asked.n_ctx, lambda v: padded(v) == n_ctx and min(asked.n_batch, v, tokens) == n_batch
        )
        alike = {n: self._alike(TUNABLES[n], asked) for n in self.parameters if TUNABLES[n].equal}
        found = asked.with_(
            n_ctx=context,
            n_batch=self._first("n_batch", asked.n_batch, lambda v: min(v, context, tokens) == n_batch),
            n_ubatch=self._first("n_ubatch", asked.n_ubatch, lambda v: min(v, n_batch) == n_ubatch),
            n_gpu_layers=n_gpu_layers,
            **alike,
        )
        own = self.own_placement
        return found.with_(fit=True) if own is not None and found == own.with_(n_ctx=found.n_ctx) else found

    def _alike(self, tunable: Tunable, asked: Configuration) -> Any:
        """The first value with the same effect, by the parameter's own rule."""
        assert tunable.equal is not None
        rule, n_layer, name = tunable.equal, self.traits.n_layer, tunable.name
        in_effect = rule(asked, n_layer)
        return self._first(
            name, getattr(asked, name), lambda v: rule(asked.with_(**{name: v}), n_layer) == in_effect
        )

    def _first(self, name: str, asked: Any, same: Callable[[Any], bool]) -> Any:
        if name not in self.parameters:
            return asked
        return next((v for v in self.parameters[name].values if same(v)), asked)

    def violations(self, configuration: Configuration) -> tuple[str, ...]:
        """The known constraints of llama.cpp that this configuration breaks, in words; empty if it may run."""
        c = configuration
        found = []
        if c.type_v in QUANTISED_CACHE_TYPES and not c.flash_attn:
            found.append(f"a V cache of {c.type_v} needs flash_attn=true")
        if padded(c.n_ctx) < self.traits.n_ctx_needed:
            found.append(
                f"n_ctx={c.n_ctx} is less than the {self.traits.n_ctx_needed} tokens the workload needs"
            )
        if max(c.n_threads, c.n_threads_batch) > MOST_THREADS:
            found.append(f"more than {MOST_THREADS} threads crash llama.cpp")
        return tuple(found)

    def params_of(self, configuration: Configuration) -> dict[str, Any]:
        """The values of the searched parameters in a configuration, for Optuna and MLflow."""
        return {name: getattr(configuration, name) for name in self.parameters}

    def grid(self) -> Iterator[Configuration]:
        """Every valid configuration once, in the order of the parameters' values."""
        seen: set[str] = set()
        for values in itertools.product(*(p.values for p in self.parameters.values())):
            configuration = self.configuration(dict(zip(self.parameters, values, strict=True)))
            if configuration.digest in seen or self.violations(configuration):
                continue
            seen.add(configuration.digest)
            yield configuration

    def drawn(self, draw: Random, count: int) -> list[Configuration]:
        """``count`` random points, without those that cannot run."""
        points = (
            self.configuration({p.name: draw.choice(p.values) for p in self.parameters.values()})
            for _ in range(count)
        )
        return [c for c in points if not self.violations(c)]

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distributions, with the parameters' own names and values."""
        from optuna.distributions import CategoricalDistribution, IntDistribution

        return {
            p.name: IntDistribution(p.values[0], p.values[-1], step=p.range_step)
            if p.range_step
            else CategoricalDistribution(p.values)
            for p in self.parameters.values()
        }

    def describe(self) -> dict[str, Any]:
        """The space as plain data: the values of each searched parameter."""
        return {
            p.name: {"low": p.values[0], "high": p.values[-1], "step": p.range_step}
            if p.range_step
            else list(p.values)
            for p in self.parameters.values()
        }


def effective(configuration: Configuration, traits: Traits) -> tuple[int, int, int, int]:
    """``(n_ctx, n_batch, n_ubatch, n_gpu_layers)`` as they take effect.

    The function mirrors silent changes of the engine. It pads contexts, and clamps batches to the context and n_ubatch
    to n_batch. It never fills a batch that is larger than the prompt. More layers than the model has means all layers,
    and on a build without GPU support no layers are offloaded.
    """
    c = configuration
    n_ctx = padded(c.n_ctx)
    n_batch = min(clamped("n_batch", c), traits.prompt_tokens or c.n_ctx)
    layers = c.n_gpu_layers
    if not traits.gpu_offload:
        layers = 0
    elif traits.n_layer and not 0 <= layers <= traits.n_layer:
        layers = traits.n_layer + 1  # the output layer is one more
    return n_ctx, n_batch, min(c.n_ubatch, n_batch), layers


def build_space(spec: Mapping[str, Any], base: Configuration, traits: Traits) -> SearchSpace:
    """Build the space that ``spec`` describes over ``base``.

    Args:
        spec: parameter name -> range mapping, list or scalar, all resolved (no ``auto``).
        base: the values of parameters that the spec does not name.
        traits: facts about machine, engine and workload.

    Raises:
        SpaceError: the spec is wrong; the message names the key and the fix.
    """
    parameters: dict[str, Parameter] = {}
    fixed: dict[str, Any] = {}
    for name, value in spec.items():
        if name not in PARAMETER_NAMES:
            raise SpaceError(f"space.{name}: no such parameter; choose from {', '.join(PARAMETER_NAMES)}")
        if TUNABLES[name].baseline_only:
            raise SpaceError(f"space.{name}: sweeper sets it only for the baseline; leave it out")
        parameter = _parameter(name, value)
        for one in parameter.values:
            _check_value(name, one, traits)
        if len(parameter.values) == 1:
            fixed[name] = parameter.values[0]
        else:
            parameters[name] = parameter
    space = SearchSpace(parameters, base.with_(**fixed), traits)
    if next(space.grid(), None) is None:
        why = "; ".join(
            space.violations(space.configuration({n: p.values[0] for n, p in parameters.items()}))
        )
        raise SpaceError(f"space: none of its configurations can run ({why}): widen it")
    return space


def _parameter(name: str, value: Any) -> Parameter:
    if isinstance(value, Mapping):
        return _range(name, value)
    if isinstance(value, (list, tuple)):
        if not value:
            raise SpaceError(f"space.{name}: the list is empty; name at least one value")
        values = tuple(dict.fromkeys(value))
        ordinal = name == "quant" or all(
            isinstance(v, (int, float)) and not isinstance(v, bool) for v in values
        )
        return Parameter(name, values, ordinal)
    return Parameter(name, (value,), ordinal=True)


def _range(name: str, spec: Mapping[str, Any]) -> Parameter:
    unknown = set(spec) - {"low", "high", "step", "log"}
    if unknown:
        raise SpaceError(
            f"space.{name}: unknown key {sorted(unknown)[0]!r}; a range has low, high, step, log"
        )
    for key in ("low", "high"):
        if not isinstance(spec.get(key), (int, float)) or isinstance(spec.get(key), bool):
            raise SpaceError(
                f"space.{name}.{key}: {spec.get(key)!r} is not a number; a range needs low and high"
            )
        if not float(spec[key]).is_integer():
            raise SpaceError(f"space.{name}.{key}: {spec[key]!r} is not a whole number")
    low, high, step = int(spec["low"]), int(spec["high"]), spec.get("step", 1)
    if low > high:
        raise SpaceError(f"space.{name}: low {low} is above high {high}; swap them")
    if not isinstance(step, int) or step < 1:
        raise SpaceError(f"space.{name}.step: {step!r} is not a whole number above 0")
    if spec.get("log"):
        if low < 1:
            raise SpaceError(f"space.{name}.low: {low} is not possible in a log range; start from 1 or above")
        inner = [2**e for e in range(high.bit_length()) if low < 2**e < high]
        return Parameter(name, tuple(dict.fromkeys([low, *inner, high])), ordinal=True)
    values = tuple(range(low, high + 1, step))
    return Parameter(name, values, ordinal=True, range_step=step if len(values) > 1 else None)


def _check_value(name: str, value: Any, traits: Traits) -> None:
    tunable = TUNABLES[name]
    words = traits.quants if name == "quant" else tunable.words
    if value is None:
        if not tunable.optional:
            raise SpaceError(f"space.{name}: null is not allowed; give a number, a list or a range")
    elif tunable.kind == "flag":
        if not isinstance(value, bool):
            raise SpaceError(f"space.{name}: {value!r} is neither true nor false")
    elif tunable.kind == "word":
        if words and value not in words:
            raise SpaceError(f"space.{name}: {value!r} is not one of {', '.join(words)}")
        if name == "tensor_split":
            _check_split(value, traits.gpus)
    elif not isinstance(value, int) or isinstance(value, bool):
        raise SpaceError(f"space.{name}: {value!r} is not a whole number")
    elif tunable.least is not None and value < tunable.least:
        raise SpaceError(f"space.{name}: {value} is below the minimum, {tunable.least}")


def _check_split(value: Any, gpus: int | None) -> None:
    try:
        shares = proportions(str(value))
    except ValueError as error:
        raise SpaceError(f"space.tensor_split: {error}") from None
    if gpus is not None and len(shares) > gpus:
        raise SpaceError(f"space.tensor_split: {value!r} is for {len(shares)} GPUs, and here are {gpus}")
