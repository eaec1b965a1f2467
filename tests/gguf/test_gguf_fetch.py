import hashlib
import json

import gguf_bytes as raw
import pytest
from hub_server import COMMIT, Hub, hub_serving

from sweeper.errors import ConfigError, ModelFileError, ModelMissingError
from sweeper.model.digest import sha256_of_model
from sweeper.model.header import read_header
from sweeper.model.hub import fetch, stated_digest

MODEL = raw.whole(tensors=(raw.tensor("t", (8,)),), data=bytes(32))


@pytest.fixture
def hub():
    with hub_serving(Hub("owner/model", {"a-Q4_K_M.gguf": MODEL, "README.md": b"hi"})) as serving:
        yield serving


@pytest.fixture
def get(hub, tmp_path):
    def ask(repo="owner/model", file="a-Q4_K_M.gguf", revision=None):
        return fetch(repo, file, revision, tmp_path / "root", hub.endpoint, False, tmp_path / "cache")

    return ask


def downloads(hub):
    return [request for request in hub.requests if request.startswith("GET") and "/resolve/" in request]


def test_a_branch_is_resolved_to_a_commit_and_the_file_is_checked(get, hub, tmp_path):
    fetched = get()
    assert fetched.path.read_bytes() == MODEL
    assert (fetched.commit, fetched.sha256) == (COMMIT, hashlib.sha256(MODEL).hexdigest())
    assert read_header(fetched.path).architecture == "llama"
    # From the commit, never from the branch, which may move between two requests.
    assert downloads(hub) == [f"GET /owner/model/resolve/{COMMIT}/a-Q4_K_M.gguf"]
    note = json.loads(next((tmp_path / "root" / "hub").iterdir()).read_text())
    assert (note["commit"], note["sha256"]) == (COMMIT, fetched.sha256)


@pytest.mark.parametrize("revision", ["main", "v1", COMMIT])
def test_each_kind_of_revision(get, revision):
    assert get(revision=revision).commit == COMMIT


def test_what_is_there_is_not_fetched_again(get, hub):
    assert get() == get()
    assert len(downloads(hub)) == 1


def test_a_file_that_is_not_what_the_hub_says_is_refused(get, hub):
    hub.stated_sha256["a-Q4_K_M.gguf"] = "1" * 64
    with pytest.raises(
        ModelFileError, match=r"differs from the hub's file with SHA-256 111111111111…: delete it"
    ):
        get()


def test_a_split_model_is_fetched_whole(get, hub):
    for index in (1, 2):
        keys = [*raw.LLAMA, raw.number("split.count", 2)]
        name = f"big-{index:05d}-of-00002.gguf"
        hub.files[name] = raw.whole(keys, (raw.tensor(f"t{index}", (8,)),), bytes(32))
    fetched = get(file="big-00001-of-00002.gguf")
    header = read_header(fetched.path)
    assert len(header.tensors) == 2
    assert header.size_bytes == sum(len(hub.files[name]) for name in hub.files if name.startswith("big"))
    del hub.files["big-00002-of-00002.gguf"]
    with pytest.raises(ModelMissingError, match="no file big-00002-of-00002"):
        get(file="big-00001-of-00002.gguf")


def test_the_hub_states_a_models_digest_without_a_download(hub, get, tmp_path):
    for index in (1, 2):
        keys = [*raw.LLAMA, raw.number("split.count", 2)]
        name = f"big-{index:05d}-of-00002.gguf"
        hub.files[name] = raw.whole(keys, (raw.tensor(f"t{index}", (8,)),), bytes(32))

    def stated(file, repo="owner/model"):
        return stated_digest(repo, file, None, hub.endpoint, False)

    said = {file: stated(file) for file in ("a-Q4_K_M.gguf", "big-00001-of-00002.gguf")}
    assert downloads(hub) == []
    for file, digest in said.items():
        assert digest == sha256_of_model(read_header(get(file=file).path).parts, tmp_path)
    with pytest.raises(ModelMissingError, match="no repository owner/other"):
        stated("a.gguf", "owner/other")
    hub.status = 503
    assert stated("a-Q4_K_M.gguf") is None


def test_the_only_model_of_a_repository_needs_no_name(get, hub):
    assert get(file=None).path.name == "a-Q4_K_M.gguf"
    hub.files["b.gguf"] = MODEL
    with pytest.raises(ConfigError, match=r"2 GGUF files; choose one with model\.file=…: a-Q4_K_M\.gguf, b"):
        get(file=None)
    hub.files = {"README.md": b""}
    with pytest.raises(ModelMissingError, match=r"no \.gguf file"):
        get(file=None)


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"file": "b.gguf"}, ModelMissingError, "has no file b.gguf"),
        ({"file": "../../b.gguf"}, ConfigError, r"model\.file=\.\./\.\./b"),
        ({"file": "/etc/b.gguf"}, ConfigError, r"model\.file=/etc"),
        ({"file": "model.bin"}, ConfigError, r"model\.file=model\.bin"),
        ({"revision": "nope"}, ModelMissingError, "no revision nope"),
        ({"repo": "owner/other"}, ModelMissingError, "no repository owner/other"),
        ({"repo": "a/b/c"}, ConfigError, r"model\.repo=a/b/c: give OWNER/NAME"),
        ({"repo": "../etc"}, ConfigError, r"model\.repo=\.\./etc"),
    ],
)
def test_wrong_words_are_one_line_each(get, asked, error, words):
    with pytest.raises(error, match=words) as caught:
        get(**asked)
    assert "\n" not in str(caught.value)


def test_a_gated_repository_says_how_to_be_let_in(get, hub):
    hub.status, hub.error_code = 403, "GatedRepo"
    with pytest.raises(ModelMissingError, match="accept its terms"):
        get()


def test_without_the_hub_what_was_fetched_before_is_used_if_it_is_unchanged(get, hub):
    fetched = get(revision="v1")
    hub.status = 503
    assert get(revision="v1") == fetched
    with pytest.raises(ModelMissingError, match=r"cannot reach the hub for owner/model .*503"):
        get(revision="main")
    fetched.path.resolve().write_bytes(b"changed since")
    with pytest.raises(ModelMissingError, match="cannot reach the hub"):
        get(revision="v1")


def test_a_hub_that_is_not_there(hub, tmp_path):
    with pytest.raises(
        ModelMissingError, match=r"cannot reach the hub .*: give a file with model\.path=FILE"
    ):
        # Nothing listens on port 9 of loopback.
        fetch("owner/model", "a.gguf", None, tmp_path, "http://127.0.0.1:9", False, tmp_path / "cache")
