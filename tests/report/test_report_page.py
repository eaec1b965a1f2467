import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from made_sweeps import failed_only, no_front, reading, single_point, sweep

from sweeper.records import Caveat, Objective, SweepRecord
from sweeper.report.caveats import advice_lines
from sweeper.report.front_points import front_data, front_points, planes_of
from sweeper.report.html import html_report
from sweeper.report.markdown import markdown_report
from sweeper.report.picks import picks
from sweeper.report.words import tally

EVIL = "</script><img src=x onerror=alert(1)>\"'&<b>${7*7}"
SWEEPS = {
    "estimated": sweep(),
    "gpu": sweep(kind="measured", gpu=True),
    "simulated": sweep(kind="simulated"),
    "no front": no_front(),
    "one point": single_point(),
    "all failed": failed_only(),
}


class Page(HTMLParser):
    """The page as a browser's parser takes it apart."""

    VOID = ("meta", "img", "br", "hr", "link", "input")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.code: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            name = self.tags[-1][1].get("id")
            if name:
                self.scripts[name] = self.scripts.get(name, "") + data
            else:
                self.code.append(data)
        elif self.open and self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module", params=SWEEPS.values(), ids=SWEEPS)
def record(request: pytest.FixtureRequest) -> SweepRecord:
    found: SweepRecord = request.param
    return found


def test_the_page_is_whole(record: SweepRecord) -> None:
    page = Page(html_report(record))
    assert page.open == []
    assert {"planes", "words"} == json.loads(page.scripts["front-data"]).keys()


def test_nothing_on_the_page_asks_for_another_file(record: SweepRecord) -> None:
    page = Page(html_report(record))
    for tag, attrs in page.tags:
        assert not {"src", "href", "srcset", "data", "action", "style"} & attrs.keys(), (tag, attrs)
        assert not [name for name in attrs if name.startswith("on")], (tag, attrs)
    style = html_report(record).split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_names_the_very_script_and_the_style_of_the_page() -> None:
    html = html_report(SWEEPS["estimated"])
    page = Page(html)
    policy = str(next(a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv")))
    assert len(page.code) == 1
    for source in (*page.code, html.split("<style>")[1].split("</style>")[0]):
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_the_answer_comes_first() -> None:
    text = Page(html_report(SWEEPS["gpu"])).text
    best = picks(SWEEPS["gpu"])[0]
    assert text.index("Run this") < text.index(best.words) < text.index("Pareto front")
    assert text.index(best.apply_command) < text.index("Pareto front")


def test_without_an_answer_the_page_says_so() -> None:
    for name in ("no front", "all failed"):
        text = Page(html_report(SWEEPS[name])).text
        assert "No answer yet" in text
        assert ("no trial succeeded" if name == "all failed" else "measured twice") in text
        assert "Run this" not in text
        assert "Pareto front" not in text


@pytest.mark.parametrize("kind", ["estimated", "simulated"])
def test_watts_that_were_not_measured_say_so_wherever_they_appear(kind: str) -> None:
    html = html_report(SWEEPS[kind])
    text = Page(html).text
    for heading in re.findall(r"<th[^>]*>(W|J/tok|J/token|prefill W)\b([^<]*)</th>", html):
        assert kind in heading[1]
    assert f"power while decoding (W, {kind})" in text
    data = json.loads(Page(html).scripts["front-data"])
    assert kind in data["planes"][0]["across"]
    assert data["words"]
    assert all(any(kind in line for line in words) for words in data["words"])


def test_every_pick_stands_with_its_whole_configuration() -> None:
    record = SWEEPS["gpu"]
    text = Page(html_report(record)).text
    for picked in picks(record):
        assert picked.words in text
        assert f"trial #{picked.trial.number}" in text
    assert text.count("power_limit_watts") >= len({p.trial.number for p in picks(record)})


def test_failures_stand_with_their_reasons() -> None:
    text = Page(html_report(SWEEPS["all failed"])).text
    assert "libcuda.so.1: cannot open shared object file" in text
    assert "Trials that failed or break a constraint" in text


def evil() -> SweepRecord:
    made = sweep()
    trials = tuple(
        replace(
            t,
            reason=EVIL if t.reason else None,
            log_tail=(EVIL,),
            configuration=t.configuration.with_(type_k=EVIL if t.number else "f16"),
        )
        for t in made.trials
    )
    return replace(
        made,
        sweep=EVIL,
        model=replace(made.model, name=EVIL, architecture=EVIL),
        machine=replace(made.machine, cpu=EVIL, kernel=EVIL),
        engine=replace(made.engine, build=EVIL),
        power=replace(made.power, name=EVIL, interface=EVIL, note=EVIL),
        trials=trials,
        notes=(EVIL,),
        space={EVIL: [EVIL]},
        config={EVIL: EVIL},
        stopped_because=EVIL,
        prices=replace(made.prices, currency=EVIL),
        pick="within:5%",
    )


def test_hostile_text_stays_text() -> None:
    page = Page(html_report(evil()))
    assert page.open == []
    assert "img" not in {tag for tag, _ in page.tags}
    assert [a for _, a in page.tags if "onerror" in a] == []
    assert page.text.count("onerror=alert(1)") > 10
    words = json.loads(page.scripts["front-data"])["words"]
    assert any("<img" in line for lines in words for line in lines), "text, which the script sets as text"


def test_the_figures_data_cannot_leave_its_script_element() -> None:
    data = front_points(evil())
    assert not re.search(r"[<>&]", data)
    json.loads(data)


def test_a_front_of_three_objectives_and_odd_figures_still_draws() -> None:
    record = SWEEPS["gpu"]
    three = replace(
        record, objectives=(*record.objectives, Objective("time_to_first_token_seconds", "minimize"))
    )
    flat = replace(
        three,
        trials=tuple(
            replace(t, metrics={**t.metrics, "watts": reading(50.0, 0.0, 1)}) if t.metrics else t
            for t in three.trials
        ),
    )
    assert Page(html_report(flat)).open == []


def test_what_was_measured_once_has_no_interval() -> None:
    made = SWEEPS["gpu"]
    once = replace(
        made,
        trials=tuple(
            replace(
                t,
                metrics={
                    name: reading(r.median, 0.0, 1) if name == "watts" else r for name, r in t.metrics.items()
                },
            )
            for t in made.trials
        ),
    )
    data = json.loads(front_points(once))
    assert all(across is None and up is not None for across, up in data["planes"][0]["intervals"])
    assert not re.search(r"±\s*0(?![.\d])", Page(html_report(once)).text)


def test_a_pick_that_the_objectives_cannot_answer_gives_way_to_one_they_can() -> None:
    record = replace(SWEEPS["estimated"], objectives=SWEEPS["estimated"].objectives[:1])
    assert [picked.pick for picked in picks(record)] == ["fastest", "greenest"]
    text = Page(html_report(record)).text
    assert "Run this" in text
    assert "--pick fastest" in text


def test_the_page_of_500_trials_is_under_half_a_megabyte() -> None:
    assert len(html_report(sweep(500, "measured", gpu=True)).encode()) < 5e5


def test_a_trial_outside_a_constraint_is_counted_and_told() -> None:
    """The loop calls a trial complete that was measured and breaks a constraint."""
    made = SWEEPS["gpu"]
    broken = tuple(
        replace(t, state="complete", reason=None) if t.state == "infeasible" else t for t in made.trials
    )
    record = replace(made, trials=broken)
    assert tally(record) == tally(made)
    text = Page(html_report(record)).text
    assert "breaks kl_divergence <= 0.02" in text


def three_objectives() -> SweepRecord:
    prompt = Objective("prompt_tokens_per_second", "maximize")
    made = SWEEPS["gpu"]
    return replace(made, objectives=(made.objectives[0], prompt, made.objectives[1]))


def test_each_objective_is_drawn_against_what_it_costs() -> None:
    record = three_objectives()
    planes = planes_of(record)
    assert [(p.across, p.up) for p in planes] == [
        ("watts", "tokens_per_second"),
        ("watts", "prompt_tokens_per_second"),
    ]
    assert {plane.better for plane in planes} == {"up and to the left"}
    page = Page(html_report(record))
    assert len(json.loads(page.scripts["front-data"])["planes"]) == 2
    assert len([a for _, a in page.tags if a.get("class") == "front-plot"]) == 2


@pytest.mark.parametrize("name", ["gpu", "estimated"])
def test_the_staircase_never_goes_back(name: str) -> None:
    record = SWEEPS[name]
    everything = tuple(t.number for t in record.trials if t.feasible)  # far more than the true front
    for plane in front_data(replace(three_objectives(), trials=record.trials, front=everything))["planes"]:
        places = [(across, up) for across, up, _ in plane["stairs"]]
        assert places == sorted(places)
        assert [up for _, up in places] == sorted(up for _, up in places)


def test_a_third_objective_that_pays_is_told_beside_the_pick() -> None:
    record = three_objectives()
    fastest = next(p for p in picks(record) if p.pick == "fastest")
    assert "% prefill speed" in fastest.words


def test_a_pick_says_what_it_chooses() -> None:
    text = Page(html_report(SWEEPS["gpu"])).text
    assert "within:5%: the least power while decoding within 5 % of the best decode speed" in text


def test_a_caveat_of_some_trials_names_them_and_not_the_sweep() -> None:
    made = SWEEPS["gpu"]
    first = made.front[0]
    off = next(t.number for t in made.trials if t.feasible and t.number not in (*made.front, made.baseline))
    noisy = replace(
        made,
        caveats=(Caveat.NOISY,),  # a sweep's caveats are those of any of its trials
        trials=tuple(
            replace(t, caveats=(Caveat.NOISY,)) if t.number in (first, off) else t for t in made.trials
        ),
    )
    assert f"(#{first}, and 1 trial that is not on the Pareto front)" in next(
        x for x in advice_lines(noisy) if x.startswith("noisy")
    )
    once = {"prompt_tokens_per_second": reading(30.0, 0.0, 1)}
    prompts = replace(
        made,
        trials=tuple(
            replace(t, caveats=(Caveat.SPREAD_UNKNOWN,), metrics={**t.metrics, **once})
            if t.number == first
            else t
            for t in made.trials
        ),
    )
    said = f"prefill speed of #{first} was measured only once, so its spread is unknown"
    assert f"spread unknown: {said}" in advice_lines(prompts)
    whole = replace(made, caveats=(Caveat.DRIFT,))
    assert [x for x in advice_lines(whole) if x.startswith("drift")] == [f"drift: {Caveat.DRIFT.advice}"]


@pytest.mark.parametrize(("state", "words"), [("running", "unfinished"), ("stopped", "was stopped")])
def test_a_sweep_that_has_not_ended_says_so_before_its_answer(state: str, words: str) -> None:
    record = replace(SWEEPS["gpu"], state=state)
    for text in (Page(html_report(record)).text, markdown_report(record)):
        assert text.index(words) < text.index("Run this")
    assert words not in Page(html_report(SWEEPS["gpu"])).text


def test_a_change_that_noise_hides_is_told_in_words() -> None:
    made = SWEEPS["gpu"]
    base = made.trials[0]
    speed = base.metrics["tokens_per_second"]
    wide = replace(speed, low=0.2 * speed.median, high=1.8 * speed.median)
    noisy = replace(base, metrics={**base.metrics, "tokens_per_second": wide})
    text = Page(html_report(replace(made, trials=(noisy, *made.trials[1:])))).text
    assert "too noisy to compare with the baseline" in text
    assert "%, compared with the baseline" in text  # watts


def test_the_command_that_repeats_the_sweep_has_the_words_that_the_user_typed() -> None:
    typed = ["experiment=demo", "model=tiny_15m", "minutes=3", "name=evening"]
    record = replace(sweep(), sweep="evening", config={"typed": typed, "root": "elsewhere"})
    text = Page(html_report(record)).text
    assert "sweeper sweep experiment=demo model=tiny_15m minutes=3 root=elsewhere name=evening-2" in text


def test_a_simulated_sweep_offers_nothing_to_apply() -> None:
    assert "sweeper apply" not in Page(html_report(SWEEPS["simulated"])).text
    assert "sweeper apply" in Page(html_report(SWEEPS["gpu"])).text
