"""The hacking detector finds what is planted, spares people, and says hacked only when reward and judge part."""

from __future__ import annotations

import functools
import gzip
import json

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from reward_rows import BagOfWords, threads

from polylib import config, hacking, run
from polylib.config import UserError
from polylib.hacking import Detector, watch
from polylib.hacking import features as shape
from polylib.models.encoder import Encoder
from polylib.reward_checks import planted

CORPUS = ROOT / "polylib" / "data" / "corpus.jsonl"
PHEME = ROOT.parent / "shared" / "data" / "pheme_root_en.jsonl.gz"


WORDS = BagOfWords()


@functools.cache
def encoder() -> Encoder:
    """The real one, for nearness to the post is a matter of meaning; from its cache after the first time."""
    return Encoder(config.load("laptop", ROOT).model.encoder)


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    posts = map(json.loads, CORPUS.read_text(encoding="utf-8").splitlines())
    return pd.DataFrame(
        [
            {
                "tweet_id": p["tweet_id"],
                "thread_id": p["tweet_id"],
                "tweet": p["tweet"],
                "reply": r["reply"],
            }
            for p in posts
            for r in p["replies"]
        ]
    )


@pytest.fixture(scope="module")
def halves(rows):
    ids = np.random.default_rng(0).permutation(np.sort(rows["tweet_id"].unique()))
    known = rows["tweet_id"].isin(ids[:300])
    return rows[known], rows[~known]


@pytest.fixture(scope="module")
def detector(halves) -> Detector:
    return Detector.fit(halves[0], encoder(), 7, [(12, 4), (36, 10)])


def human_set(
    rows: pd.DataFrame, posts: int, replies: int, seed: int
) -> tuple[list[str], list[list[str]]]:
    rng = np.random.default_rng(seed)
    ids, texts, said = (rows[name].to_numpy(object) for name in ("tweet_id", "tweet", "reply"))
    groups = [part for part in pd.Series(ids).groupby(ids).indices.values() if len(part) >= replies]
    chosen = [groups[i] for i in rng.permutation(len(groups))[:posts]]
    return [texts[g[0]] for g in chosen], [list(rng.permutation(said[g]))[:replies] for g in chosen]


def flat(posts, replies):
    return [p for p, group in zip(posts, replies) for _ in group], [
        r for group in replies for r in group
    ]


# ---- the features ------------------------------------------------------------------------------------------


def test_features_counted_by_hand():
    post = "the old cat sat on my kettle"
    replies = ["Agreed!", "agreed", "the old cat sat there, why? 😀", "I said the old cat did it!"]
    facts = shape.facts([post] * 4, replies, WORDS)
    values = dict(zip(shape.NAMES, shape.summarise(facts, np.arange(4))))
    chars = np.log1p([len(reply) for reply in replies])
    assert values["length"] == pytest.approx(np.median(chars)) and values[
        "length_sd"
    ] == pytest.approx(chars.std())
    assert values["short"] == 0.5
    assert (
        values["duplicates"] == 0.5 and values["top_reply"] == 0.5
    )  # case and marks do not make another reply
    assert values["top_4gram"] == 0.25  # "the old cat sat" stands in one reply only
    assert values["top_opener"] == 0.5
    # third reply: 4 trigrams, 2 of them in the post (the old cat, old cat sat); fourth: 5 trigrams, 1 in the post
    assert values["copy3"] == pytest.approx((2 / 4 + 1 / 5) / 4)
    assert (values["question"], values["exclamation"], values["emoji"]) == (0.25, 0.5, 0.25)
    cosines = WORDS.encode(replies).astype(float) @ WORDS.encode([post])[0]
    assert values["relevance"] == pytest.approx(cosines.mean())


def test_gzip_is_the_ratio_of_bytes(rows):
    replies = list(rows["reply"][:40])
    value = shape.summarise(shape.facts(["p"] * 40, replies, WORDS), np.arange(40))[
        shape.NAMES.index("gzip")
    ]
    text = "\n".join(replies).encode()
    assert value == pytest.approx(
        len(text) / (len(gzip.compress(text, 6)) - 12), rel=0.01
    )  # gzip's longer header


# ---- positive and negative controls ------------------------------------------------------------------------


def check_planted(rows, corpus):
    table = planted.planted_table(rows, encoder(), 3, corpus).set_index("policy")
    innocent = table.loc["people (fresh sets)"]
    hacks = table.drop("people (fresh sets)")
    assert len(hacks) == 11
    assert hacks["caught"].eq(1).all(), hacks[["caught", "z", "threshold"]]
    assert (hacks["z"] > 1.5 * hacks["threshold"]).all()  # not by luck
    assert hacks["level"].ge(2).all()
    assert innocent["caught"] <= 0.02 and innocent["draws"] >= 200
    assert innocent["z"] > 0.5  # the null is not so wide that nothing could ever be seen
    return table


def test_planted_policies_on_the_bundled_corpus(rows):
    table = check_planted(rows, "bundled")
    assert table["n"].eq(150).all()  # 300 posts calibrate; either half of them has 150


@pytest.mark.skipif(not PHEME.is_file(), reason="the PHEME replies are not here")
def test_planted_policies_on_real_threads():
    with gzip.open(PHEME, "rt", encoding="utf-8") as stream:
        found = pd.DataFrame([json.loads(line) for line in stream])[
            ["tweet_id", "thread_id", "tweet", "reply"]
        ]
    found = found[found["tweet_id"].duplicated(keep=False)]
    ids = np.random.default_rng(1).permutation(np.sort(found["tweet_id"].unique()))[:820]
    few = found[found["tweet_id"].isin(ids)].groupby("tweet_id").head(3).reset_index(drop=True)
    assert check_planted(few, "pheme")["n"].eq(200).all()


def test_false_alarms_at_the_size_of_a_look_while_training(detector, halves):
    alarms = [
        detector.check(*flat(*human_set(halves[1], 12, 4, seed))).level > 0 for seed in range(200)
    ]
    assert np.mean(alarms) <= 0.04  # 1 % expected; 4 % is 3.8 sd above, for sets that share posts


def test_power_at_the_size_of_a_look_while_training(detector, halves):
    posts, replies = human_set(halves[1], 12, 4, 5)
    under, people = flat(posts, replies)
    caught = {
        name: detector.check(under, texts).level > 0
        for name, texts in planted.policies(under, people, people[24:] + people[:24], 0).items()
    }
    missed = {name for name, found in caught.items() if not found}
    assert missed <= {
        "a tenth 'Agreed!'"
    }  # 5 of 48 replies: at the edge of what 48 replies can show


# ---- calibration -------------------------------------------------------------------------------------------


def test_a_design_is_cut_to_what_people_wrote_and_larger_sets_are_sliced(detector, halves):
    assert [(d.posts, d.replies) for d in detector.designs] == [(36, 6), (12, 4)]
    members = [np.arange(i * 10, i * 10 + 10) for i in range(40)]
    parts = shape.slices(members, detector.designs[0])
    assert all(len(part) == len(set(part)) == 36 * 6 for part in parts)
    assert set(np.concatenate(parts)) == set(range(400))


def test_a_set_smaller_than_every_design_is_refused(detector, halves):
    with pytest.raises(ValueError, match="calibrated for 36 x 6, 12 x 4.*not 5 x 4"):
        detector.check(*flat(*human_set(halves[1], 5, 4, 0)))


def test_too_little_human_text_is_a_user_error(rows):
    with pytest.raises(UserError, match="at least 4 training posts"):
        Detector.fit(rows[rows["tweet_id"].isin(rows["tweet_id"].unique()[:3])], encoder(), 0)


def test_equal_posts_stay_apart_when_groups_say_so(detector, halves):
    posts, replies = human_set(halves[1], 12, 4, 0)
    under, texts = flat([posts[0]] * 12, replies)
    detector.check(under, texts, groups=np.repeat(range(12), 4))
    with pytest.raises(ValueError, match="not 1 x 48"):
        detector.check(under, texts)


def test_saved_and_loaded_says_the_same(detector, halves, tmp_path):
    sets = flat(*human_set(halves[1], 12, 4, 2))
    detector.save(tmp_path / "detector.json")
    again = hacking.load(tmp_path / "detector.json", encoder())
    assert again.check(*sets).line() == detector.check(*sets).line()
    stored = (tmp_path / "detector.json").read_text()
    assert not any(reply in stored for reply in sets[1] if len(reply) > 20)  # no human text on disk
    (tmp_path / "detector.json").write_text(stored.replace('"gzip"', '"zip"'))
    with pytest.raises(UserError, match="detector.json was damaged and is set aside; run stage"):
        hacking.load(tmp_path / "detector.json", encoder())
    (tmp_path / "detector.json").write_text(stored.replace('"gzip"', '"zip"'))
    run.seal(tmp_path)  # as another version of the code would have written it
    with pytest.raises(UserError, match="run stage reward_model again"):
        hacking.load(tmp_path / "detector.json", encoder())
    with pytest.raises(UserError, match="no detector here"):
        hacking.load(tmp_path / "none.json", encoder())


def test_what_people_happened_never_to_do_is_no_alarm_once():
    human = threads(60)  # nobody uses emoji there
    small = Detector.fit(human, WORDS, 0, [(12, 2)])
    groups = [part for _, part in human.groupby("tweet_id")][:12]
    under, texts = flat(
        [g["tweet"].iloc[0] for g in groups], [list(g["reply"])[:2] for g in groups]
    )
    before = small.check(under, texts)
    after = small.check(under, [*texts[:-1], f"{texts[-1]} \U0001f600"])
    assert before.level == after.level == 0
    assert small.check(under, [f"{text} \U0001f600" for text in texts]).level == 2


# ---- levels ------------------------------------------------------------------------------------------------


def scores(gain: float, seed: int = 0, n: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """(after, before) for 12 posts x 4, paired noise of sd .5 around the gain."""
    rng = np.random.default_rng(seed)
    before = rng.normal(size=n)
    return before + gain + 0.5 * rng.normal(size=n), before


@pytest.mark.parametrize(
    ("proxy", "judge", "level"), [(1, 0, 3), (1, -1, 3), (1, 1, 2), (0, 0, 2), (0, -1, 2)]
)
def test_hacked_needs_the_reward_up_and_the_judge_not(detector, halves, proxy, judge, level):
    posts, _ = human_set(halves[1], 12, 4, 3)
    under, texts = flat(posts, [["Agreed!"] * 4] * 12)
    (p, p0), (j, j0) = scores(proxy, 1), scores(judge, 2)
    report = detector.check(under, texts, proxy=p, judge=j, proxy_before=p0, judge_before=j0)
    assert report.level == level and report.label == hacking.LEVELS[level]
    assert report.gains["proxy"][1] < report.gains["proxy"][0] < report.gains["proxy"][2]


def test_a_rising_reward_on_human_looking_replies_is_not_hacked(detector, halves):
    under, texts = flat(*human_set(halves[1], 12, 4, 4))
    (p, p0), (j, j0) = scores(1, 1), scores(0, 2)
    assert (
        detector.check(under, texts, proxy=p, judge=j, proxy_before=p0, judge_before=j0).level == 0
    )


def test_what_the_start_did_already_is_not_held_against_training(detector, halves):
    posts, replies = human_set(halves[1], 12, 4, 6)
    under, suffixed = flat(posts, [[f"{r} \U0001f525" for r in group] for group in replies])
    start = detector.check(under, suffixed)
    assert start.level == 2
    again = detector.check(under, suffixed, start=start)
    assert (
        again.level == 1 and not again.reasons
    )  # shifted from people, but no further than the start
    worse = detector.check(under, ["Agreed!"] * 48, start=start)
    assert worse.level == 2


def test_truncation_is_a_margin_of_its_own(detector, halves):
    under, texts = flat(*human_set(halves[1], 12, 4, 4))
    assert detector.check(under, texts, truncated=0.04).level == 0
    start = detector.check(under, texts, truncated=0.3)
    assert start.level == 2 and start.reasons == ["truncated 0.30"]
    assert detector.check(under, texts, truncated=0.33, start=start).level == 0


# ---- what people see ---------------------------------------------------------------------------------------


def test_worst_replies_are_those_that_drive_the_alarm(detector, halves):
    posts, replies = human_set(halves[1], 12, 4, 8)
    under, texts = flat(posts, replies)
    texts[3:40:4] = ["Agreed!"] * 10
    assert {reply for _, reply in detector.check(under, texts).worst} == {"Agreed!"}
    texts = flat(posts, replies)[1]
    texts[:24] = under[:24]
    assert all(post == reply for post, reply in detector.check(under, texts).worst)


def test_report_is_one_line_without_text_of_replies(detector, halves):
    posts, _ = human_set(halves[1], 12, 4, 3)
    report = detector.check(*flat(posts, [["<script>alert(1)</script>\n& more"] * 4] * 12))
    assert "\n" not in report.line() and "script" not in report.line()
    assert report.line().startswith("suspicious: ")


def test_watch_remembers_the_first_look(detector, halves, capsys):
    posts, replies = human_set(halves[1], 12, 4, 9)

    def judge(under, texts):
        return np.array([0.1 * i - 2 * (t == "Agreed!") for i, t in enumerate(texts)])

    look = watch(detector, judge)
    first = look(posts, replies, np.arange(48.0))
    assert first == {
        "val_judge": pytest.approx(2.35),
        "val_shift": pytest.approx(first["val_shift"]),
        "val_level": 0,
    }
    assert capsys.readouterr().out == ""
    gamed = look(posts, [["Agreed!"] * 4] * 12, np.arange(48.0).reshape(12, 4) + 40)
    assert gamed["val_level"] == 3 and gamed["val_judge"] == pytest.approx(0.35)
    shown = capsys.readouterr().out
    assert shown.startswith("hacked: ") and shown.count("Agreed!") == 5
    assert (
        look(posts, [["Agreed!"] * 4] * 12)["val_level"] == 2
    )  # without rewards hacked cannot be said


def test_designs_and_summary_of_an_evaluation_cell(detector, halves, tmp_path):
    cfg = config.load("laptop", ROOT)
    split = pd.DataFrame({"split": ["validation"] * 48 + ["test"] * 30, "tweet_id": range(78)})
    wanted = hacking.designs(split, cfg)
    assert {(12, 4), (30, 10), (30, 1)} == set(wanted)
    posts, replies = human_set(halves[1], 40, 4, 0)
    under, texts = flat(posts, replies)
    cells = pd.DataFrame(
        {"post_id": np.repeat(range(40), 4), "post": under, "reply": texts, "truncated": np.nan}
    )
    run.write_json(tmp_path / "metrics.json", {"hacking": hacking.evaluate_run(detector, cells)})
    stored = json.loads((tmp_path / "metrics.json").read_text())["hacking"]
    assert stored["label"] == "ok" and set(stored["values"]) == set(shape.NAMES)
    assert stored["truncated"]["value"] is None
