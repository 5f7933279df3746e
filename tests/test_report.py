"""The report in a real browser: renders without a complaint, sorts, filters, fits a phone, runs nobody's script."""

from __future__ import annotations

import base64
import dataclasses
import json
import re

import browser
import numpy as np
import pandas as pd
import pytest
import reply_rows
import study_fixture
from scipy import stats

from polylib.analysis import decision, replies, results
from polylib.config import UserError
from polylib.evaluation import failures
from polylib.figures import costs, failure_table, plain_tables, report, tables

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c63606060"
    "60000000050001016db3d5a00000000049454e44ae426082"
)
METHODS = ["human", "sft", "lambda0", "polychromic", "grpo", "hybrid"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    cfg = study_fixture.small_config()
    paths = study_fixture.write_study(tmp_path_factory.mktemp("study"), cfg)
    reply_rows.write(paths, cfg)
    paths.figures.mkdir(parents=True)
    (paths.figures / "forest.png").write_bytes(PIXEL)
    (paths.figures / "forest.pdf").write_bytes(b"%PDF")
    (paths.figures / "quality_diversity.png").write_bytes(PIXEL)
    (paths.figures / "quality_diversity.csv").write_bytes(b"method,seed\nsft,42\n")
    return results.load(paths, cfg)


@pytest.fixture(scope="module")
def failed(study):
    return failure_table.rates(study)


@pytest.fixture(scope="module")
def page(study, failed):
    guide = pd.DataFrame(
        [
            ["a good reply", "sft", "nothing established: nearest is GRPO", "", 2.0, ""],
            ["variety <b>now</b>", "polychromic", "diversity +0.05 over SFT", "", 3.0, ""],
        ],
        columns=["want", "choose", "because", "versus", "minutes", "excluded"],
    )
    found = failure_table.examples(failed)
    found.attrs["collapsed"] = True
    shown = {
        "Main table": tables.main(study),
        "Failures": failure_table.table(failed, "note"),
        "Examples": found,
        "Departures": pd.DataFrame(columns=["setting", "registered", "used"]),
        "Costs": costs.table(study),
    }
    return report.write(study, shown, guide, study.paths.results("report"))


@pytest.fixture(scope="module")
def tab(page):
    executable = browser.find()
    if not executable:
        pytest.skip("no Chromium: apt install chromium, or set CHROMIUM to its path")
    with browser.Browser(executable) as opened:
        opened.size(1280, 900)
        opened.open(page)
        yield opened


TEXTS = "[...document.querySelectorAll('#columns .reply p')].map(p => p.textContent)"


def test_it_renders_without_a_complaint_and_user_text_is_text(tab):
    assert tab.log == []
    assert tab.run("document.title") == "Study laptop"
    assert "Simulated engagement" in tab.run("document.querySelector('.banner').textContent")
    assert (
        tab.run("document.getElementById('post').textContent")
        == f"Post 0: the river rose again {reply_rows.SCRIPT}"
    )
    texts = tab.run(TEXTS)
    assert reply_rows.IMAGE in texts and reply_rows.CONTROL.replace("\ud83d", "\ufffd") in texts
    assert "never shown" not in "".join(texts), "the control temperatures are not part of the page"
    assert tab.run("typeof window.pwned") == "undefined"
    assert (
        tab.run(
            "document.querySelectorAll('#columns img, #post script, td img, th b, td script').length"
        )
        == 0
    )
    assert tab.run("[...document.querySelectorAll('figure img')].map(i => i.naturalWidth)") == [
        1,
        1,
    ]
    assert [
        h.split(" judge")[0]
        for h in tab.run(
            "[...document.querySelectorAll('#columns h3')].map(h => h.firstChild.textContent)"
        )
    ] == ["people", "SFT", "SFT+ (λ=0)", "polychromic", "GRPO", "hybrid"]


def test_the_policy_stops_what_would_get_through(tab, page):
    """Planted: the policy, not only the escaping, holds. A script, a handler and a request are all refused."""
    tab.run(
        "window.refused = []; document.addEventListener('securitypolicyviolation', "
        "event => window.refused.push(event.effectiveDirective))"
    )
    tab.run(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.pwned = 3\"><p id=probe></p>');"
        "const s = document.createElement('script'); s.textContent = 'window.pwned = 4'; document.body.append(s)"
    )
    assert (
        tab.run("fetch('http://127.0.0.1:1/').then(() => 'sent', error => error.name)")
        == "TypeError"
    )
    assert (
        tab.run("new Promise(done => setTimeout(() => done(typeof window.pwned), 200))")
        == "undefined"
    )
    assert set(tab.run("window.refused")) == {
        "connect-src",
        "img-src",
        "script-src-attr",
        "script-src-elem",
    }
    tab.log.clear()
    tab.open(page)
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", page.read_text(encoding="utf-8"))


def test_it_opens_with_the_finding_and_its_figure(tab, study):
    first = "document.querySelector('main > section')"
    assert tab.run(f"{first}.id") == "finding"
    assert tab.run(f"[...{first}.querySelectorAll('p')].map(p => p.textContent)") == [
        "polychromic's gain is established for variety <b>now</b>: diversity +0.05 over SFT.",
        "No gain over SFT is established for 1 of 2 purposes, among them a good reply; 3 runs a method.",
    ]
    assert tab.run(f"{first}.querySelector('figure').id") == "figure-quality_diversity"
    assert tab.run("document.querySelector('#figures figure').id") == "figure-forest"
    assert not tab.run("document.querySelector('#table-what-to-use details').open"), "folded"
    guide = decision.guide(study)
    said = " ".join(report.finding(guide.assign(excluded="grpo (hacked)"), 3))
    assert "Out, as it games its reward: grpo (hacked)." in said
    for row in guide.itertuples():
        assert (f"gain is established for {row.want}:" in said) == (row.choose != "sft"), row.want


def test_figures_have_titles_an_alternative_text_and_grow_when_clicked(tab):
    shown = "[...document.querySelectorAll('figure')]"
    titles = tab.run(f"{shown}.map(f => f.querySelector('figcaption strong').textContent)")
    assert titles == ["Judge score against diversity", "Forest"]
    alt = tab.run(f"{shown}.map(f => f.querySelector('img').alt)")
    assert all(text.startswith(title) for text, title in zip(alt, titles, strict=True))
    assert "error bars" in alt[0] and all(len(text) > 60 for _, text in report.FIGURES.values())
    small = tab.run("document.querySelector('figure img').getBoundingClientRect().width")
    tab.click("figure .zoom")
    assert (
        tab.run("document.querySelector('dialog[open] img').getBoundingClientRect().width") > small
    )
    tab.press("Escape", 27)
    assert tab.run("document.querySelector('dialog[open]')") is None


def test_links_work_when_the_page_is_downloaded_alone(tab, study):
    links = tab.run(
        "[...document.querySelectorAll('a')].map(a => [a.getAttribute('href'), a.download])"
    )
    files = {name: href for href, name in links if name}
    assert set(files) == {"quality_diversity.csv", "forest.pdf"}
    for name, href in files.items():
        start, _, content = href.partition(";base64,")
        assert start in ("data:text/csv", "data:application/pdf")
        assert base64.b64decode(content) == (study.paths.figures / name).read_bytes()
    for href, name in links:
        assert name or href.startswith("#") and tab.run(f"!!document.querySelector('{href}')"), href


def test_bold_is_bold_where_the_caption_says_and_an_empty_section_says_none(tab, study):
    table = tables.main(study)
    assert "Bold:" in table.caption and table.bold.to_numpy().any()
    drawn = tab.run(
        "[...document.querySelectorAll('#table-main-table tbody tr')].map(r => [...r.cells].map(c => "
        "!!c.querySelector('b') && c.querySelector('b').textContent === c.textContent))"
    )
    assert drawn == table.bold.astype(bool).to_numpy().tolist()
    assert (
        tab.run("document.querySelector('#table-departures').innerText.split('\\n').pop()")
        == "None."
    )
    assert tab.run("document.querySelectorAll('#table-departures table').length") == 0


def test_the_main_table_fits_and_the_post_stays_beside_its_replies(tab, page):
    wide, room = tab.run(
        "(e => [e.scrollWidth, e.clientWidth])(document.querySelector('#table-main-table .scroll'))"
    )
    assert wide <= room
    for width in (1280, 390):
        tab.size(width, 500)
        tab.run(
            "document.querySelector('.column:last-child .reply:last-child').scrollIntoView(false)"
        )
        box = tab.run(
            "(r => [r.top, r.bottom])(document.getElementById('post').getBoundingClientRect())"
        )
        assert box[0] >= 0 and box[1] <= 500 and tab.run("scrollY") > 500
    tab.size(1280, 900)
    tab.open(page)


def choose(tab, control: str, value: str, event: str = "change") -> None:
    tab.run(
        f"(s => {{ s.value = {json.dumps(value)}; s.dispatchEvent(new Event('{event}')); }})"
        f"(document.getElementById('{control}'))"
    )


def column(tab, section: str, number: int) -> list[str]:
    return tab.run(
        f"[...document.querySelectorAll('#{section} tbody tr')].map(r => r.cells[{number}].textContent)"
    )


def test_tables_sort_by_mouse_and_by_key(tab, study):
    head = "#table-main-table thead th:nth-child(2)"
    states = []
    for _ in range(2):
        tab.click(f"{head} button")
        values = [float(cell.split(" ±")[0]) for cell in column(tab, "table-main-table", 1)]
        states.append(
            (tab.run(f"document.querySelector('{head}').getAttribute('aria-sort')"), values)
        )
    assert [name for name, _ in states] == ["ascending", "descending"]
    assert (
        states[0][1] == sorted(values)
        and states[1][1] == sorted(values, reverse=True)
        and len(set(values)) > 4
    )
    tab.run("document.querySelector('#table-main-table thead th button').focus()")
    tab.press("Enter", 13, "\r")
    names = column(tab, "table-main-table", 0)
    assert names[:4] == ["GRPO", "hybrid", "people", "polychromic"] and names != sorted(names), (
        "as people sort words"
    )
    assert tab.run(f"document.querySelector('{head}').getAttribute('aria-sort')") == "none"
    tab.click(
        "#table-main-table thead th:nth-child(5) button"
    )  # pass@10: people have too few replies
    assert column(tab, "table-main-table", 4)[-1] == "–"


def test_posts_turn_and_seeds_change(tab):
    tab.click("#next")
    assert tab.run("document.getElementById('place').textContent") == "2 / 24"
    assert tab.run("document.getElementById('post').textContent").startswith("Post 1:")
    tab.press("ArrowRight", 39)
    assert tab.run("document.getElementById('place').textContent") == "3 / 24"
    before = tab.run(TEXTS)
    choose(tab, "seed", "123")
    assert tab.run(TEXTS) != before and tab.run(TEXTS)[:3] == before[:3], "people have no seed"
    tab.press("ArrowLeft", 37)
    tab.press("ArrowLeft", 37)
    assert tab.run(
        "[document.getElementById('place').textContent, document.getElementById('previous').disabled]"
    ) == ["1 / 24", True]
    choose(tab, "seed", "42")


def test_replies_are_filtered_by_words_method_and_failure(tab, study):
    frame = replies.load(study)
    mine = frame[frame["seed"].isin([None, 42]) | frame["method"].eq("human")]
    choose(tab, "search", "NEIGHBOUR", "input")
    hits = mine["reply"].str.contains("neighbour")
    found = f"{hits.sum()} replies to {mine.loc[hits, 'post_id'].nunique()} posts"
    assert tab.run("document.getElementById('found').textContent") == found
    assert tab.run("document.querySelector('#columns mark').textContent") == "neighbour"
    tab.click("#methods .m-human")
    hits &= mine["method"].ne("human")
    assert tab.run("document.getElementById('found').textContent").startswith(
        f"{hits.sum()} replies to "
    )
    assert tab.run("document.querySelectorAll('#columns .m-human').length") == 0
    choose(tab, "search", reply_rows.IMAGE[:40], "input")
    assert tab.run("document.querySelector('#columns mark').textContent") == reply_rows.IMAGE[:40]
    assert tab.run("document.querySelectorAll('#columns img').length") == 0
    choose(tab, "search", "no such words <b>", "input")
    assert tab.run("document.getElementById('found').textContent") == "no reply matches"
    choose(tab, "search", "", "input")
    tab.click("#methods .m-human")
    choose(tab, "flag", str(list(failures.RULES).index("leakage")))
    assert tab.run(TEXTS) == [reply_rows.CONTROL.replace("\ud83d", "\ufffd")]
    assert failures.RULES["leakage"] in tab.run("document.getElementById('found').textContent")
    choose(tab, "flag", "")


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_it_without_scrolling_sideways(tab, page, dark):
    tab.size(390, 844, dark)
    tab.open(page)
    assert tab.run("[document.documentElement.scrollWidth, innerWidth]") == [390, 390]
    assert tab.run(
        "(e => e.scrollWidth > e.clientWidth)(document.querySelector('#table-main-table .scroll'))"
    ), "the wide table scrolls in its own box"
    assert (
        tab.run(
            "new Set([...document.querySelectorAll('.column')].map(c => c.getBoundingClientRect().x)).size"
        )
        == 1
    )
    paper = tab.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(paper) < 60) == dark
    assert tab.log == []


def test_the_same_study_gives_the_same_bytes_and_embedded_text_cannot_end_its_element(
    study, page, tmp_path
):
    first, second = (
        report.write(study, {"Main": tables.main(study)}, None, tmp_path).read_bytes()
        for _ in range(2)
    )
    assert first == second
    text = page.read_text(encoding="utf-8")
    embedded = text.split('id="replies">')[1].split("</script>")[0]
    assert embedded.isascii() and not set("<>&\n") & set(embedded)
    data = json.loads(embedded)
    assert data["posts"][0]["text"].endswith(reply_rows.SCRIPT)
    assert len(re.findall("<script", text)) == 2
    assert report.safe_json("\u2028</script>\ud800") == r'"\u2028\u003c/script\u003e\ud800"'


def test_a_page_that_would_be_too_large_holds_the_first_posts_and_says_so(study, tmp_path):
    text = report.write(
        study, {"Main": tables.main(study)}, None, tmp_path, limit=30_000
    ).read_text(encoding="utf-8")
    kept = len(json.loads(text.split('id="replies">')[1].split("</script>")[0])["posts"])
    assert 1 <= kept < 24 and f"first {kept} of 24 posts" in text


@pytest.mark.parametrize(
    "change,said",
    [
        (lambda row: row.pop("judge"), "no column judge: written by an older version"),
        (lambda row: row.update(flags=["unheard_of"]), "no rule for flag unheard_of"),
        (None, "missing"),
    ],
)
def test_older_results_are_refused_with_the_remedy(change, said, tmp_path):
    cfg = study_fixture.small_config(seeds=(42,))
    paths = study_fixture.write_study(tmp_path, cfg)
    reply_rows.write(paths, cfg)
    file = paths.evaluation("grpo", 42) / "generations.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.unlink()
    if change:
        for row in rows:
            change(row)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        UserError, match=rf"grpo.s42.generations\.jsonl: {said}.*07_evaluation"
    ) as error:
        report.write(results.load(paths, cfg), {"Main": pd.DataFrame({"a": [1]})}, None, tmp_path)
    assert "\n" not in str(error.value)


def test_failure_rates_are_means_over_runs_with_their_own_interval(study, failed, tmp_path):
    frame = replies.load(study)
    row = failed[failed["failure"].eq("agreement") & failed["method"].eq("grpo")].iloc[0]
    mine = frame[frame["method"].eq("grpo")]
    rates = [
        np.mean(["agreement" in flags for flags in mine[mine["seed"].eq(seed)]["flags"]])
        for seed in (42, 123, 456)
    ]
    test = stats.ttest_1samp(rates, 0).confidence_interval(0.95)
    assert row["rate"] == pytest.approx(np.mean(rates)) and row["runs"] == 3
    assert [row["low"], row["high"]] == pytest.approx([max(test.low, 0), min(test.high, 1)])
    people = (
        frame[frame["method"].eq("human")]["flags"].map(lambda flags: "agreement" in flags).mean()
    )
    assert row["people"] == pytest.approx(people) and len(failed) == len(failures.RULES) * len(
        METHODS
    )
    assert failed.loc[failed["failure"].eq("truncated"), "people"].isna().all()
    assert failed.loc[failed["rate"].eq(0), ["low", "high"]].isna().all(axis=None), (
        "no spread, no interval"
    )
    leaks = failed[failed["failure"].eq("leakage") & failed["method"].eq("sft")].iloc[0]
    assert (
        leaks["example_1"] == reply_rows.CONTROL.replace("\ud83d", "\ufffd")
        and leaks["example_2"] == ""
    )
    failure_table.table(failed, "note | with a bar").save(tmp_path)
    names = [tmp_path / f"failures.{ending}" for ending in ("csv", "tex")]
    first = [name.read_bytes() for name in names]
    failure_table.table(failure_table.rates(study), "note | with a bar").save(tmp_path)
    assert [name.read_bytes() for name in names] == first
    assert names[1].read_text(encoding="utf-8").count(r"\\") == len(failures.RULES) + 1


def test_costs_are_hours_tokens_and_a_price_only_if_there_is_one(study, tmp_path):
    table = costs.table(study).numbers.set_index("method")
    grpo = [
        study.costs.query(f"stage == '{stage}' and seed == {seed}")["seconds"].iloc[0]
        for stage in ("grpo", "sft")
        for seed in (42, 123, 456)
    ]
    assert table.loc["grpo", "minutes"] == pytest.approx(np.mean(grpo[:3]) / 60)
    assert table.loc["grpo", "hours_with_start"] == pytest.approx(sum(grpo) / 3 / 3600), (
        "starts from SFT"
    )
    assert table["gpu_hours"].eq(0).all() and (table["core_hours"] > 0).all()
    section = study.cfg.grpo
    drawn = [study.histories["grpo", seed]["length"].sum() for seed in (42, 123, 456)]
    assert table.loc["grpo", "sampled_tokens"] == pytest.approx(
        np.mean(drawn) * section.prompts_per_step * section.samples_per_prompt
    )
    assert table.loc["sft", "sampled_tokens"] == 0 and np.isnan(table.loc["sft", "trained_tokens"])
    assert table["price"].isna().all() and table["reason"].eq(costs.NO_PRICE).all()
    assert table.loc["study", "minutes"] == pytest.approx(study.costs["seconds"].sum() / 60)

    priced = dataclasses.replace(
        study,
        cfg=dataclasses.replace(
            study.cfg,
            paper_figures=dataclasses.replace(study.cfg.paper_figures, price_per_hour=3.6),
        ),
    )
    costs.table(priced).save(tmp_path)
    table = costs.table(priced).numbers
    assert table.set_index("method").loc["grpo", "price"] == pytest.approx(sum(grpo) / 3 / 1000)
    assert table["reason"].eq("").all() and "at 3.6 an hour" in (tmp_path / "costs.tex").read_text()
    with pytest.raises(UserError, match="no env.json"):
        costs.table(dataclasses.replace(study, costs=study.costs.iloc[:0]))


def test_text_in_tables_is_no_markup():
    frame = pd.DataFrame({"a|b": ["50 % & _x_"], "c": ["1 | 2"]})
    table = plain_tables.Table("t", frame, frame, "two\nlines")
    assert (
        r"50 \% \& \_x\_ & 1 | 2 \\" in table.to_latex()
        and table.to_latex().splitlines()[-1] == "% two lines"
    )
    assert (
        "<b>"
        not in plain_tables.Table("t", frame, frame.map(lambda _: "<b>x</b>"), "c")._repr_html_()
    )
