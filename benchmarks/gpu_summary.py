"""`summary.md`, made of the steps' JSON files alone: what is not in them is not in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

STEPS = ("machine", "path", "nvml", "table", "sweep")


def write_summary(out: Path) -> Path:
    """Write the tables of what stands in ``out``."""
    found = {s: json.loads((out / f"{s}.json").read_text()) for s in STEPS if (out / f"{s}.json").exists()}
    lines = _head(found["machine"])
    for name, write in (("path", _path), ("nvml", _nvml), ("table", _table), ("sweep", _sweep)):
        step = found.get(name)
        if step is None:
            lines += ["", f"## {name}", "", "not reached: run the same command again"]
            continue
        state = step["state"] + (f": {step['reason']}" if step["reason"] else "")
        lines += ["", f"## {name} ({state})", "", *write(step)]
    target = out / "summary.md"
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return target


def _head(machine: dict[str, Any]) -> list[str]:
    lines = [f"# {machine['gpu']}", ""]
    if machine["simulated_sensor"]:
        lines += ["**The sensor is simulated: no watt or joule here was measured.**", ""]
    if not machine["gpu_offload"]:
        lines += ["**This build of llama.cpp offloads nothing: every layer ran on the CPU.**", ""]
    changed = machine.get("settings_changed")
    kept = "not compared yet" if changed is None else "changed" if changed else "unchanged"
    ceiling = machine["card_ceiling"]
    return [
        *lines,
        f"Driver {machine['driver']}, kernel {machine['kernel']}, {machine['engine']}, "
        f"GPU {machine['gpu_uuid_sha256']}, form `{machine['form']}`.",
        "",
        f"At rest {_n(_median(machine['idle_watts']))} W. Bandwidth of the card {_n(ceiling['gb_per_second'])} GB/s "
        f"({ceiling['source']}), of the host {_n(machine['host_ceiling']['gb_per_second'])} GB/s "
        f"({machine['host_ceiling']['source']}). The card's power limits before and after: {kept}.",
    ]


def _path(step: dict[str, Any]) -> list[str]:
    lines = _table_head(
        "model", "layers asked", "on GPU", "decode tok/s", "W", "J/token", "of ceiling", "prefill tok/s", "W",
        "J/token", "GPU MiB",
    )  # fmt: skip
    for row in step["rows"]:
        if "error" in row:
            lines.append(f"| {row['key']} | {_cell(row['error'])} |" + " |" * 9)
            continue
        decode, prefill, share = row["decode"], row["prefill"], row["share_of_ceiling"]
        cells = [
            f"{row['model']} {row['quant']}",
            row["n_gpu_layers_asked"],
            f"{row['layers_on_gpu']} of {row['layers_in_all']}",
            *(_n(_median(decode[name])) for name in ("tokens_per_second", "watts", "joules_per_token")),
            "–" if share is None else f"{share:.0%}",
            *(_n(_median(prefill[name])) for name in ("tokens_per_second", "watts", "joules_per_token")),
            _n(row["vram_mib"]),
        ]
        lines.append(_line(cells))
    return lines


def _nvml(step: dict[str, Any]) -> list[str]:
    windows = [row for row in step["rows"] if "over_counter" in row]
    names = list(dict.fromkeys(name for row in windows for name in row["over_counter"]))
    lines = _table_head(
        "window", "s", "counter W", *(f"{n} / counter" for n in names), "resident W", "capped", "MHz"
    )
    for row in windows:
        ratios = [row["over_counter"].get(name, {}).get("ratio") for name in names]
        cells = [
            f"{row['model']} {row['quant']}",
            _n(row["seconds"]),
            _n(row["counter"]["watts"]),
            *("–" if ratio is None else f"{ratio:.3f}" for ratio in ratios),
            _n(_median(row["resident_watts"])),
            "–" if row["capped_share"] is None else f"{row['capped_share']:.0%}",
            _n(row["clock_mhz"]),
        ]
        lines.append(_line(cells))
    for row in step["rows"]:
        if "under_load" in row:
            trust = row["under_load"]
            lines += [
                "",
                f"Under load the counter refreshed every {_n(trust['counter_period_seconds'])} s, power every "
                f"{_n(trust['power_period_seconds'])} s; they differed by {_n(trust['conflict_fraction'])}.",
            ]
        if "error" in row:
            lines += ["", f"{row['key']}: {row['error']}"]
    return lines


def _table(step: dict[str, Any]) -> list[str]:
    return [
        f"{step.get('measured')} of {step.get('configurations')} configurations, {step.get('by_state', {})}."
    ]


def _sweep(step: dict[str, Any]) -> list[str]:
    if "trials" not in step:
        return ["No trial."]
    lines = [f"{step['trials']} trials, {step['by_state']}.", ""]
    lines += _table_head("trial", "decode tok/s", "W", "measured twice", "configuration")
    for trial in step["front"]:
        settings = ", ".join(f"{key}={value}" for key, value in trial["configuration"].items())
        twice = "yes" if trial["remeasured"] else "no"
        cells = [trial["trial"], _n(trial.get("tokens_per_second")), _n(trial.get("watts")), twice, settings]
        lines.append(_line(cells))
    return lines


def _table_head(*names: str) -> list[str]:
    return [_line(names), "|" + "---|" * len(names)]


def _line(cells: Any) -> str:
    return "| " + " | ".join(_cell(str(cell)) for cell in cells) + " |"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _median(reading: dict[str, Any] | None) -> float | None:
    return None if reading is None else reading["median"]


def _n(value: float | None) -> str:
    """Three significant digits; a dash for what is missing."""
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
