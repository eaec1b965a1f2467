import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.model.llama_library import LogCapture

INFO, WARN, ERROR, CONTINUE = 2, 3, 4, 5


def capture(*pieces, keep=100):
    log = LogCapture(keep)
    for level, text in pieces:
        log.feed(level, text)
    return log


def test_pieces_become_lines():
    log = capture(
        (INFO, "a"), (CONTINUE, "b"), (CONTINUE, "c\n"), (WARN, "w1 "), (WARN, "-> w2\n"), (ERROR, "e\nf\n")
    )
    assert log.lines() == ["abc", "w1 -> w2", "e", "f"]
    assert log.lines("warn") == ["w1 -> w2"]
    assert log.reason("why") == "why: f"


def test_the_reason_is_the_error_before_the_one_that_gives_none():
    log = capture(
        (ERROR, "llama_model_load: error loading model: unknown model architecture: 'x'\n"),
        (ERROR, "llama_model_load_from_file_impl: failed to load model\n"),
    )
    assert log.reason("why") == "why: llama_model_load: error loading model: unknown model architecture: 'x'"
    assert capture((ERROR, "a: failed to load model\n")).reason("why") == "why: a: failed to load model"


@pytest.mark.parametrize("reads", ["tensor data", "tensor info", "key-value pairs"])
def test_the_reason_is_that_of_ggml_where_the_header_is_bad(reads):
    log = capture(
        (ERROR, "gguf_init_from_reader: tensor 'a' has offset 2, expected 64\n"),
        (ERROR, f"gguf_init_from_reader: failed to read {reads}\n"),
        (
            ERROR,
            "llama_model_load: error loading model: llama_model_loader: failed to load model from a b.gguf\n",
        ),
        (ERROR, "llama_model_load_from_file_impl: failed to load model\n"),
    )
    assert log.reason("why") == "why: gguf_init_from_reader: tensor 'a' has offset 2, expected 64"


def test_a_line_that_was_never_ended_is_kept():
    assert capture((INFO, "begun"), (ERROR, "why\n")).lines() == ["begun", "why"]
    assert capture((ERROR, "the last word")).lines() == ["the last word"]


def test_the_oldest_lines_go():
    log = capture(*((INFO, f"{i}\n") for i in range(10)), keep=3)
    assert log.lines() == ["7", "8", "9"]
    assert log.reason("no error") == "no error"
    log.clear()
    assert log.lines() == []


@given(st.lists(st.text(alphabet="ab \n", max_size=5), max_size=20))
def test_however_it_is_cut_the_text_is_the_same(pieces):
    whole = capture((INFO, "".join(pieces)), keep=1_000)
    cut = capture(*((INFO if i == 0 else CONTINUE, piece) for i, piece in enumerate(pieces)), keep=1_000)
    assert cut.lines() == whole.lines()
