"""The work of a token, the ceiling and the computed speed: arithmetic on a header."""

from dataclasses import replace
from pathlib import Path

import pytest
from nano_models import NANO, NANO_MOE

from sweeper.guess.earlier import speed_before, watts_before
from sweeper.guess.fit import BY_ARITHMETIC, fit
from sweeper.guess.records import DeviceMemory, Figure, Fit, Guess
from sweeper.guess.text import plain, text
from sweeper.guess.traffic import (
    SAMPLE_SECONDS,
    TOKEN_SECONDS,
    ceiling_tokens_per_second,
    kernels_wanted,
    seconds_per_token,
    traffic,
)
from sweeper.guess.watts import estimated_watts
from sweeper.model.forecast import KernelSpeeds
from sweeper.model.header import read_header
from sweeper.model.shapes import ModelShape
from sweeper.model.synthetic import write_synthetic_header
from sweeper.power_settings import EstimateSettings
from sweeper.records import (
    Configuration,
    EngineRecord,
    GpuRecord,
    MachineRecord,
    ModelFile,
    ModelRecord,
    Objective,
    PowerSource,
    Reading,
    SweepRecord,
    TrialRecord,
    Workload,
)

MACHINE = MachineRecord("f" * 12, "a CPU", 4, 8, 16_000, "Linux")


def header_of(shape, tmp_path, quant="F16"):
    return read_header(write_synthetic_header(shape, tmp_path / f"{quant}.gguf", quant, "x"))


def test_a_token_reads_every_weight_but_the_embeddings(tmp_path):
    header = header_of(NANO, tmp_path)
    embeddings = 2 * NANO.vocab_size * NANO.embedding_length
    everything = sum(tensor.bytes for tensor in header.tensors)
    assert traffic(header).total_bytes == everything - embeddings


def test_tied_embeddings_are_read_as_the_output(tmp_path):
    header = header_of(replace(NANO, tied_embeddings=True), tmp_path)
    assert traffic(header).total_bytes == sum(tensor.bytes for tensor in header.tensors)


def test_only_the_experts_in_use_count(tmp_path):
    header = header_of(NANO_MOE, tmp_path)
    experts = sum(tensor.bytes for tensor in header.tensors if "_exps" in tensor.name)
    everything = sum(tensor.bytes for tensor in header.tensors)
    embeddings = 2 * NANO_MOE.vocab_size * NANO_MOE.embedding_length
    assert traffic(header).total_bytes == everything - embeddings - experts * (8 - 2) / 8


def test_the_cache_grows_with_the_context_and_shrinks_with_its_type(tmp_path):
    work = traffic(header_of(NANO, tmp_path))
    head = NANO.embedding_length // NANO.head_count
    of_one_token = NANO.n_layer * 2 * NANO.head_count_kv * head * 2  # K and V, 2 bytes each
    assert work.kv_bytes(100, Configuration()) == 100 * of_one_token
    assert work.kv_bytes(100, Configuration(type_k="q8_0", type_v="q8_0")) == pytest.approx(
        100 * of_one_token * 8.5 / 16
    )
    assert work.attention_elements == NANO.n_layer * 2 * NANO.embedding_length


def test_the_ceiling_is_bandwidth_over_bytes(tmp_path):
    work = traffic(header_of(NANO, tmp_path))
    assert ceiling_tokens_per_second(work, 0, Configuration(), 10.0) == 10e9 / work.total_bytes
    deep = ceiling_tokens_per_second(work, 512, Configuration(), 10.0)
    assert deep == 10e9 / (work.total_bytes + work.kv_bytes(512, Configuration()))


def test_the_time_of_a_token_is_the_sum_of_its_parts(tmp_path):
    work = traffic(header_of(NANO, tmp_path))
    wanted = kernels_wanted(work)
    assert all(total == round(work.total_bytes) for _, _, total in wanted)
    speeds = KernelSpeeds(tuple(1e9 for _ in wanted), step_seconds=1e-6, attention_per_second=1e9)
    empty = seconds_per_token(work, speeds, 0)
    fixed = TOKEN_SECONDS + SAMPLE_SECONDS * NANO.vocab_size
    assert empty == pytest.approx(work.total_bytes / 1e9 + work.steps * 1e-6 + fixed)
    deep = seconds_per_token(work, speeds, 1000)
    assert deep - empty == pytest.approx(1000 * work.attention_elements / 1e9)


def test_each_type_of_weight_has_its_own_speed(tmp_path):
    work = traffic(header_of(NANO, tmp_path, "Q4_K_M"))
    wanted = kernels_wanted(work)
    assert {kind for kind, _, _ in wanted} == {"Q4_K", "Q6_K"}
    free = KernelSpeeds(tuple(1e15 for _ in wanted), 0.0, 1e15)
    slow = KernelSpeeds(tuple(1e6 if kind == "Q6_K" else 1e15 for kind, _, _ in wanted), 0.0, 1e15)
    read = sum(size for (kind, _), size in work.weight_bytes.items() if kind == "Q6_K")
    more = seconds_per_token(work, slow, 0) - seconds_per_token(work, free, 0)
    assert more == pytest.approx(read / 1e6, rel=0.15)  # the types that were not tried count like the others


def test_the_header_of_a_shape_is_sparse_and_as_large_as_the_model(tmp_path):
    shape = ModelShape(32, 4096, 11008, 32, 32)
    path = write_synthetic_header(shape, tmp_path / "7b.gguf", "Q4_K_M", "x")
    assert path.stat().st_size > 3.8e9
    assert path.stat().st_blocks * 512 < 4e6
    assert read_header(path).parameters == shape.parameters


def test_without_llama_cpp_the_fit_is_arithmetic_and_says_so(tmp_path):
    header = header_of(NANO, tmp_path)
    found = fit(header, traffic(header), Configuration(n_ctx=1024), "llama-cpp-python is not installed")
    (host,) = found.devices
    assert found.fits
    assert found.label.startswith(BY_ARITHMETIC)
    assert "llama-cpp-python is not installed" in found.label
    assert host.weights_mib == pytest.approx(header.size_bytes / 2**20, rel=0.05)
    assert host.kv_mib == traffic(header).kv_bytes(1024, Configuration()) / 2**20


def test_without_llama_cpp_a_model_beyond_memory_does_not_fit(tmp_path):
    header = header_of(ModelShape(100, 65536, 262144, 32, 32), tmp_path)
    found = fit(header, traffic(header), Configuration(), "it is absent")
    assert not found.fits
    assert "MiB are free" in str(found.reason)


# -- watts


def test_watts_follow_from_threads_and_are_estimated():
    ratings = EstimateSettings(idle_watts=10.0, busy_watts=50.0)
    found = estimated_watts(MACHINE, Configuration(n_threads=4), ratings)
    assert (found.expected, found.label) == (30.0, "estimated")
    assert found.low < 30.0 < found.high
    guessed = estimated_watts(MACHINE, Configuration(n_threads=4), EstimateSettings())
    assert guessed.low == guessed.expected / 2
    assert "a factor of 2, because these ratings are guesses: set power.estimate.idle_watts" in guessed.reason


def test_watts_of_a_card_lie_below_its_limit():
    card = GpuRecord("a card", "GPU-1", "580", power_limit_watts=200.0)
    found = estimated_watts(
        replace(MACHINE, gpus=(card,)), Configuration(n_gpu_layers=33), EstimateSettings()
    )
    assert found.high == 200.0
    assert found.label == "estimated"


# -- earlier sweeps


def sweep_of(header, **changes) -> SweepRecord:
    def reading(value):
        return Reading(value, 0.9 * value, 1.1 * value, 3)

    trial = TrialRecord(
        0,
        "complete",
        Configuration(n_threads=4, n_batch=512, quant=header.file_type),
        {
            "tokens_per_second": reading(20.0),
            "watts": reading(40.0),
            "tokens_per_second_at_full_depth": reading(15.0),
        },
    )
    file = ModelFile(header.file_type, "x.gguf", "", header.size_bytes)
    model = ModelRecord(
        "x",
        header.architecture,
        header.parameters,
        header.n_layer,
        1024,
        "file",
        header.file_type,
        {header.file_type: file},
    )
    record = SweepRecord(
        sweep="evening",
        state="complete",
        machine=MACHINE,
        engine=EngineRecord("llama_cpp", "1", sampling="as a server"),
        model=model,
        workload=Workload(),
        objectives=(Objective("tokens_per_second", "maximize"),),
        constraints=(),
        power=PowerSource("rapl", "x", "package", "measured"),
        space={},
        trials=(trial,),
        front=(0,),
        baseline=0,
        recommended=0,
    )
    return replace(record, **changes)


def test_an_earlier_sweep_of_the_same_model_gives_speed_and_watts(tmp_path):
    header = header_of(NANO, tmp_path)
    wanted = Configuration(n_threads=4, quant="F16")
    found = speed_before([sweep_of(header)], header, wanted, Workload())
    assert found is not None
    assert (found.expected, found.label) == (20.0, "from earlier sweeps")
    assert found.low < 18.0
    assert found.high > 22.0
    assert "evening" in found.reason
    deep = speed_before([sweep_of(header)], header, wanted, Workload(), "tokens_per_second_at_full_depth")
    assert deep is not None
    assert deep.expected == 15.0
    watts = watts_before([sweep_of(header)], wanted, header.n_layer)
    assert watts is not None
    assert (watts.expected, watts.label) == (40.0, "from earlier sweeps")
    assert "measured" in watts.reason


@pytest.mark.parametrize(
    ("threads", "changes"),
    [
        (2, {}),
        (4, {"workload": Workload(depth=2048)}),
        (4, {"workload": Workload(users=4)}),
        (4, {"engine": EngineRecord("llama_cpp", "1")}),  # did not sample
    ],
)
def test_an_earlier_sweep_of_another_kind_gives_no_speed(threads, changes, tmp_path):
    header = header_of(NANO, tmp_path)
    wanted = Configuration(n_threads=threads, quant="F16")
    assert speed_before([sweep_of(header, **changes)], header, wanted, Workload()) is None


def test_another_model_gives_watts_but_no_speed(tmp_path):
    other = sweep_of(header_of(NANO_MOE, tmp_path, "Q8_0"))
    header = header_of(NANO, tmp_path)
    wanted = Configuration(n_threads=4)
    assert speed_before([other], header, wanted, Workload()) is None
    assert watts_before([other], wanted, header.n_layer) is not None


def test_estimated_watts_stay_estimated(tmp_path):
    header = header_of(NANO, tmp_path)
    record = sweep_of(header, power=PowerSource("estimate", "x", "package", "estimated"))
    found = watts_before([record], Configuration(n_threads=4), header.n_layer)
    assert found is not None
    assert "estimated there" in found.reason


# -- words


def a_guess(**changes) -> Guess:
    host = DeviceMemory("host", 100.0, 10.0, 20.0, 100.0, 8000.0)
    figure = Figure(15.0, 20.0, 25.0, "computed", "why")
    made = Guess(
        model="x",
        architecture="llama",
        parameters=10**9,
        quant="Q8_0",
        size_bytes=2**30,
        fit=Fit(True, (host,), "computed by a plan"),
        depth=3456,
        ceiling_tokens_per_second=30.0,
        ceiling_tokens_per_second_at_depth=28.0,
        ceiling_reason="bandwidth",
        tokens_per_second=figure,
        tokens_per_second_at_depth=figure,
        watts=Figure(10.0, 20.0, 40.0, "estimated", "ratings"),
        configuration=Configuration(n_threads=4),
        command="sweeper sweep model=x",
    )
    return replace(made, **changes)


def test_every_figure_of_a_block_stands_beside_its_label():
    lines = {line.split()[0]: line for line in text([a_guess()]).splitlines()}
    assert "computed by a plan" in lines["fits"]
    assert "computed" in lines["ceiling"]
    assert "15 to 25 tok/s, computed" in lines["decode"]
    assert "10 to 40 W, estimated" in lines["watts"]
    assert lines["next:"] == "next: sweeper sweep model=x"
    assert "no figure here was measured" in text([a_guess()])


def test_a_table_leaves_out_the_command_of_a_model_that_does_not_fit():
    no = Fit(False, (), "computed", "needs 9 MiB of 5")
    unfit = a_guess(
        model="big",
        fit=no,
        command="sweeper sweep model=big",
        tokens_per_second=None,
        tokens_per_second_at_depth=None,
    )
    said = text([a_guess(), unfit])
    assert "big does not fit: needs 9 MiB of 5" in said
    assert "sweeper sweep model=x" in said
    assert "sweeper sweep model=big" not in said
    assert "computed, estimated" in said


def test_the_head_of_a_table_names_the_depth_and_parameters_are_counted_in_words():
    same, other = a_guess(), a_guess(depth=7000, parameters=15_000_000)
    assert "tok/s with 3,456 tokens in the context" in text([same, same]).splitlines()[0]
    head, first, second = text([same, other]).splitlines()[:3]
    assert "tok/s with a full context" in head
    assert "15–25 (3,456 tokens)" in first
    assert "15–25 (7,000 tokens)" in second
    assert "1.0 billion parameters" in text([same])
    assert "15 million parameters" in text([other])


def test_plain_data_has_the_labels():
    data = plain([a_guess()])
    assert data["guesses"][0]["tokens_per_second"]["label"] == "computed"
    assert data["guesses"][0]["fit"]["devices"][0]["needed_mib"] == 230.0
    assert data["guesses"][0]["configuration"]["n_threads"] == 4
    assert "measured" in data["note"]


def test_a_path_is_none_of_the_words(tmp_path: Path):
    from sweeper.guess.locate import split_words

    odd = tmp_path / "a=b.gguf"
    odd.write_bytes(b"x")
    words = ["llama2_7b", "space.n_threads=2", str(odd), "https://hub/x.gguf?a=b", "model.quant=Q8_0"]
    models, overrides = split_words(words)
    assert models == ["llama2_7b", str(odd), "https://hub/x.gguf?a=b"]
    assert overrides == ["space.n_threads=2", "model.quant=Q8_0"]
