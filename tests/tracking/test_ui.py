"""MLflow's real server: the tracker over HTTP, and the pages, which answer in a real browser."""

from __future__ import annotations

import json
import socket
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from headless_page import CHROMIUM, Page
from process_groups import group_ends
from store_view import client_of, runs_of, seen
from tracked_sweep import MODEL, record

from sweeper.errors import StoreError, SweepMissingError
from sweeper.servers import free_port
from sweeper.tracking import Tracker, store, tracker
from sweeper.tracking import ui as ui_module
from sweeper.tracking.ui import MlflowUi


@pytest.fixture
def ui(server: str, tmp_path: Path) -> Iterator[MlflowUi]:
    with MlflowUi(server, tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """One browser, which loads MLflow's scripts once."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with Page(tmp_path_factory.mktemp("browser") / "profile") as opened:
        yield opened


@pytest.fixture
def page(browser: Page) -> Page:
    browser.open("about:blank")
    browser.screen(1500, 1000)
    browser.requests.clear()
    return browser


# -- the tracker over HTTP


def test_a_sweep_on_a_server_is_the_same_and_may_be_repeated(
    server: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # Older than the sweep that the tests of the pages look for on the same server as its newest.
    final = record(
        model=replace(MODEL, name="over http"), sweep="over http", started_utc="2020-01-01T00:00:00+00:00"
    )
    (tmp_path / "report.html").write_text("<h1>report</h1>")
    files = {"report.html": tmp_path / "report.html"}
    tracked = Tracker.open(server, tmp_path / "unused")
    tracked.sweep_started(replace(final, state="running", trials=(), recommended=None, baseline=None))
    for one in final.trials:
        tracked.trial_finished(replace(final, state="running"), one)
    tracked.sweep_finished(final, files)
    client = client_of(server)
    before = seen(client, final)
    Tracker.open(server, tmp_path / "unused").sweep_finished(final, files)

    assert seen(client, final) == before
    parent, children = runs_of(client, final)
    assert parent.info.status == "FINISHED"
    assert len(children) == len(final.trials)
    assert before[0]["files"] == ["config.yaml", "machine.json", "report.html"]
    assert not (tmp_path / "unused").exists()
    assert capfd.readouterr() == ("", "")


def test_a_server_that_goes_away_is_a_store_error_and_no_wait(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "RETRY_SECONDS", (0.0,))
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        place = store.location(gone, tmp_path)
        tracked = Tracker(place, store.GuardedClient(client_of(gone), place.words))
        with pytest.raises(StoreError, match="MLflow store http://127"):
            tracked.trial_finished(record("running"), record().trials[0])


# -- the pages


def test_the_pages_of_a_sweep_are_found_by_its_name(ui: MlflowUi) -> None:
    newest, named = ui.pages(), ui.pages("evening")
    assert newest == named
    assert newest.experiment is not None
    assert newest.best.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(newest.home.partition("#")[0], timeout=20) as answer:
        assert answer.status == 200
    with pytest.raises(SweepMissingError, match="no sweep 'morning'"):
        ui.pages("morning")


# Whether the element that says something lies on the screen and in the part of MLflow's fold that shows it:
# the last quarter of the 100 pixels fades out.
IN_SIGHT = """said => {
    const found = [...document.querySelectorAll("code, strong")].find(e => e.innerText.includes(said));
    let fold = found;
    while (fold && getComputedStyle(fold).overflow !== "hidden") { fold = fold.parentElement; }
    if (!fold) { return false; }
    const [text, shown] = [found.getBoundingClientRect(), fold.getBoundingClientRect()];
    return text.height > 0 && text.bottom < innerHeight && text.bottom < shown.top + 0.75 * shown.height;
}"""


@pytest.mark.browser
def test_the_parents_page_alone_says_what_to_run(ui: MlflowUi, page: Page) -> None:
    address = ui.pages("evening").sweep
    assert address is not None
    page.screen(1300, 900)  # a laptop's: MLflow's assistant takes a quarter of it
    page.open(address)
    text = page.wait_for("document.body.innerText.includes('Run this') && document.body.innerText")
    assert "within:5%" in text
    assert "n_threads=4" in text
    assert "<!--" not in text
    for said in ("sweeper apply evening --pick within:5% --to llama-server --write", "Run this"):
        assert page.wait_for(f"({IN_SIGHT})({json.dumps(said)})"), f"{said} stands there without a click"
    outside = [
        u for u in page.requests if not u.startswith((address.partition("/#")[0], "data:", "blob:", "about:"))
    ]
    assert outside == []


@pytest.mark.browser
def test_the_report_is_shown_among_the_artifacts(ui: MlflowUi, page: Page) -> None:
    address = str(ui.pages("evening").sweep)
    page.open(address.replace("?", "/artifacts/report.html?"))
    page.wait_for("document.querySelector('iframe') !== null")
    source = page.evaluate("document.querySelector('iframe').srcdoc || document.querySelector('iframe').src")
    assert "The whole report" in source or source.startswith("blob:")


@pytest.mark.browser
def test_the_table_of_runs_opens_with_the_trials_and_their_figures(ui: MlflowUi, page: Page) -> None:
    page.open(ui.pages().best)
    text = page.wait_for("document.body.innerText.includes('5 matching runs') && document.body.innerText")
    for column in ("tokens_per_second", "watts", "joules_per_token", "sweeper.state", "sweeper.pick"):
        page.wait_for(f"document.body.innerText.includes('{column}')")
    assert "The description of the parent run shows the recommended commands" in text


@pytest.mark.browser
def test_the_charts_page_draws_the_front_and_the_swept_parameters(ui: MlflowUi, page: Page) -> None:
    page.open(str(ui.pages("evening").charts))
    page.wait_for("document.body.innerText.includes('watts vs. tokens_per_second')")
    page.wait_for("document.body.innerText.includes('Parallel Coordinates')")
    text = page.wait_for("document.body.innerText.includes('5 matching runs') && document.body.innerText")
    assert "out of memory" not in text


def test_a_taken_port_is_replaced_by_a_free_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert free_port(port) not in (0, port)
    assert free_port(port) == port


def test_a_folder_without_a_sweep_is_told_before_a_server_starts(tmp_path: Path) -> None:
    with pytest.raises(SweepMissingError, match="run `sweeper sweep` first"), MlflowUi(None, tmp_path):
        pass


STAND_IN = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
from http.server import BaseHTTPRequestHandler, HTTPServer
class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
HTTPServer(("127.0.0.1", int(sys.argv[1])), Healthy).serve_forever()
"""


def test_a_server_that_cannot_start_gives_its_last_words(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = [sys.executable, "-c", "print('one'); raise SystemExit('no such revision')"]
    monkeypatch.setattr(ui_module, "_command", lambda place, port: failing)
    with (
        pytest.raises(StoreError, match=r"ended with 1 before it answered: one \| no such revision"),
        MlflowUi(None, root),
    ):
        pass


def test_a_server_that_dies_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui_module, "_command", lambda _, port: [sys.executable, "-c", STAND_IN, str(port)])
    with MlflowUi(None, root, free_port(0)) as running:
        assert running._process is not None
        running._process.kill()
        with pytest.raises(StoreError, match="server stopped"):
            running.wait()


def test_ctrl_c_leaves_no_process(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui_module, "_command", lambda _, port: [sys.executable, "-c", STAND_IN, str(port)])
    group = 0

    def shown_until_ctrl_c() -> None:
        nonlocal group
        with MlflowUi(None, root, free_port(0)) as running:
            assert running._process is not None
            group = running._process.pid
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shown_until_ctrl_c()
    assert group_ends(group), "neither the server nor its children are left"
