"""A run that is interrupted, or whose files are damaged, goes on as the same run or starts over, and says which."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import stat

import pytest
import torch
from test_loop import HYBRID, equal, length_reward, talkative_models, train  # noqa: F401
from tiny import CFG, POSTS, talkative

from polylib import models, run
from polylib.models import sealed
from polylib.training import loop, policy

RUN = dataclasses.replace(HYBRID, steps=5, save_every=1, eval_every=5, samples_per_prompt=3)


@pytest.fixture(autouse=True)
def in_project(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(adapter, history without clocks, scratch folder as a kill in step 4 leaves it) of one run."""
    patch = pytest.MonkeyPatch()
    plain_model = models.load_model
    patch.setattr(  # as in every test of this file
        models,
        "load_model",
        lambda cfg, parents=(), seed=0: talkative(plain_model(cfg, parents, seed), 2),
    )
    folder = tmp_path_factory.mktemp("whole")
    (folder / "dvc.yaml").touch()
    patch.chdir(folder)
    history, adapter, paths = train(folder, RUN)
    plain = loop.take_step

    def killed(it, posts, step):
        if step == 3:
            raise KeyboardInterrupt
        return plain(it, posts, step)

    patch.setattr(loop, "take_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(folder, RUN)
    patch.undo()
    return adapter, without_clocks(history), paths.scratch("m", 3)


@pytest.fixture(scope="module")
def blank():
    """A learner for checkpoints to be read into."""
    return loop.learner(CFG, RUN, 3)


def without_clocks(history):
    return history.drop(columns=["seconds", "tokens_per_s"])


@pytest.fixture
def killed(whole, tmp_path):
    """A copy of that scratch folder where `train(tmp_path, ...)` looks for it."""
    target = run.Paths("t", tmp_path).scratch("m", 3)
    shutil.copytree(whole[2], target)
    return target


def resumed(tmp_path, whole, steps, section=RUN, **change):
    """Train again, and compare with the run that nobody disturbed; `steps` are those it may take."""
    taken, plain = [], loop.take_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            loop, "take_step", lambda it, posts, step: taken.append(step) or plain(it, posts, step)
        )
        history, adapter, paths = train(tmp_path, section, **change)
    assert taken == steps
    assert equal(adapter, whole[0]) and without_clocks(history).equals(whole[1])
    assert not paths.scratch("m", 3).exists()


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(place):
    def damage(file):
        content = bytearray(file.read_bytes())
        content[int(place * (len(content) - 1))] ^= 4
        file.write_bytes(content)

    return damage


def empty(file):
    file.write_bytes(b"")


DAMAGE = {
    "cut": cut,
    "empty": empty,
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "noise": lambda file: file.write_bytes(os.urandom(file.stat().st_size)),
    **{f"bit at {place:.0%}": flip(place) for place in (0, 0.01, 0.05, 0.3, 0.6, 0.9, 1)},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_found_and_named(whole, blank, tmp_path, damage, capsys):
    """By its checksum, without training: load_state itself."""
    last, before = policy._states(whole[2])
    scalars = sealed.read(last)[1]
    for name in (last, before):
        shutil.copy(name, tmp_path)
    damage(tmp_path / last.name)
    found = policy.load_state(tmp_path, blank.policy, blank.optimizer, scalars["marks"])
    assert (scalars["step"], found["step"]) == (3, 2)
    said = capsys.readouterr().out
    assert (
        said.count("\n") == 1 and f"{last.name}: damaged, set aside as {last.name}.damaged" in said
    )
    assert (tmp_path / f"{last.name}.damaged").is_file() and not (tmp_path / last.name).exists()


def test_the_last_whole_checkpoint_is_taken(whole, killed, tmp_path, capsys):
    last, before = policy._states(killed)
    cut(last)
    resumed(tmp_path, whole, [2, 3, 4])
    assert "m s3: resumed at step 2 of 5" in capsys.readouterr().out


def test_without_a_whole_checkpoint_it_starts_over(whole, killed, tmp_path, capsys):
    for file in policy._states(killed):
        cut(file)
    resumed(tmp_path, whole, [0, 1, 2, 3, 4])
    assert capsys.readouterr().out.count("damaged, set aside") == 2


@pytest.mark.parametrize("damage", [cut, empty, flip(0.5), os.unlink])
def test_nothing_else_in_the_folder_matters(whole, killed, tmp_path, damage):
    """The history beside the checkpoint is for people to look at."""
    others = [file for file in killed.rglob("*") if file not in policy._states(killed)]
    assert [file.name for file in others] == ["history.csv"]
    damage(others[0])
    resumed(tmp_path, whole, [3, 4])


@pytest.mark.parametrize("survivors", range(4))
def test_a_run_killed_while_it_removes_its_folder_runs_again(whole, killed, tmp_path, survivors):
    """Whatever files a killed rmtree leaves."""
    files = sorted(killed.iterdir())
    assert len(files) == 3
    for file in files[survivors:]:
        file.unlink()
    train(tmp_path, RUN)
    assert not killed.exists()


CHANGES = {
    "code": lambda patch: patch.setattr(
        loop, "__file__", str(run.Path(loop.__file__).parents[1] / "models" / "loop.py")
    ),
    "threads": lambda patch: patch.setattr(torch, "get_num_threads", lambda: 77),
    "machine": lambda patch: patch.setattr(loop, "hardware", lambda device: ["cuda", "another"]),
    "processes": lambda patch: patch.setenv("WORLD_SIZE", "2"),
    "libraries": lambda patch: patch.setattr(loop.importlib.metadata, "version", lambda name: "0"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_code_machine_or_thread_count_is_another_run(
    whole, blank, monkeypatch, capsys, what
):
    file = policy._states(whole[2])[0]
    assert loop.marks_of(CFG, RUN, POSTS, [], length_reward) == sealed.read(file)[1]["marks"]
    CHANGES[what](monkeypatch)
    marks = loop.marks_of(CFG, RUN, POSTS, [], length_reward)
    assert policy.load_state(whole[2], blank.policy, blank.optimizer, marks) is None
    said = f"{file} belongs to a run with other {what}: starting from step 0\n"
    assert capsys.readouterr().out == said and file.exists()


def test_dtype_and_device_are_part_of_a_run():
    half = dataclasses.replace(CFG, model=dataclasses.replace(CFG.model, dtype="bfloat16"))
    one, other = (loop.marks_of(cfg, RUN, POSTS, []) for cfg in (CFG, half))
    assert [name for name in one if one[name] != other[name]] == ["settings", "machine"]


def test_two_checkpoints_are_kept_and_those_of_other_settings_go(blank, killed):
    assert [file.stem[-1] for file in policy._states(killed)] == ["3", "2"]
    policy.save_state(
        killed, blank.policy, blank.optimizer, {"step": 1, "marks": {"code": "other"}}
    )
    assert [file.stem[-1] for file in policy._states(killed)] == ["1"]


# ------------------------------------------------------------------------------------------------- adapters
@pytest.fixture
def adapter(blank, tmp_path):
    masters = {name: torch.full_like(m, 0.01) for name, m in blank.policy.masters.items()}
    models.save_adapter(tmp_path / "a", masters, CFG.model, {"parents": []})
    return tmp_path / "a"


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("name", ["adapter.safetensors", "adapter.json"])
def test_a_damaged_adapter_is_found_and_named(adapter, name, damage, capsys):
    file = adapter / name
    content = file.read_bytes()
    damage(file)
    if name == "adapter.json" and file.read_bytes().strip() == content.strip():
        return  # white space at its end says nothing
    with pytest.raises(run.UserError, match=f"{name} was damaged and is set aside; run the stage"):
        models._adapter(adapter)
    assert (adapter / f"{name}.damaged").is_file() and not file.exists()
    with pytest.raises(run.UserError, match=f"{name} is missing; run the stage"):
        models.adapter_chain(adapter, adapter.parent)


def test_an_adapter_that_is_whole_is_read_and_open_to_whom_the_user_says(adapter):
    assert models.adapter_chain(adapter, adapter.parent) == [adapter]
    mode = os.umask(0)
    os.umask(mode)
    for file in adapter.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~mode


def test_the_same_adapter_is_the_same_file(adapter, tmp_path):
    note = json.loads((adapter / "adapter.json").read_text())
    for again in range(3):  # several entries of metadata would come in any order
        sealed.write(tmp_path / f"{again}", sealed.read(adapter / "adapter.safetensors")[0], note)
        assert models.hashlib.sha256((tmp_path / f"{again}").read_bytes()).hexdigest() == (
            models.adapter_digest(adapter)
        )


def test_a_file_of_an_older_version_has_no_checksum_and_is_read(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "old")
    tensors, note = sealed.read(tmp_path / "old")
    assert tensors["a"].tolist() == [1, 1] and note is None


# ------------------------------------------------------------------------------- what stops a run, in one line
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_stops_before_the_weights(tmp_path, monkeypatch, where):
    plain, seen = loop.backward, {}

    def poisoned(actor, cfg, section, batch, scored, key, *rest, **more):
        totals = plain(actor, cfg, section, batch, scored, key, *rest, **more)
        if key[1] == 3:
            seen.update(batch=batch, texts=scored.rollouts.texts, actor=actor)
            seen["masters"] = {n: m.detach().clone() for n, m in actor.masters.items()}
            if where == "loss":
                totals["loss"] = float("nan")
            else:
                next(iter(actor.params.values())).grad[0, 0] = float("inf")
        return totals

    monkeypatch.setattr(loop, "backward", poisoned)
    with pytest.raises(
        run.UserError, match="step 4: loss .*its batch is in .*not_finite_step4.json; l"
    ):
        train(tmp_path, RUN)
    scratch = run.Paths("t", tmp_path).scratch("m", 3)
    kept = json.loads((scratch / "not_finite_step4.json").read_text())
    assert [row["post"] for row in kept["posts"]] == [post.text for post in seen["batch"]]
    assert (
        kept["sampled"] == seen["texts"]
        and "nan" in (kept["loss"], kept["grad_norm"])
        or ("inf" in kept["grad_norm"])
    )
    assert equal(seen["masters"], seen["actor"].masters), "the optimizer did not step"
    tensors, scalars = sealed.read(policy._states(scratch)[0])
    assert scalars["step"] == 3 and all(t.isfinite().all() for t in tensors.values())
    assert not run.Paths("t", tmp_path).models("m", 3).exists()


def test_spent_memory_is_one_line(tmp_path, monkeypatch):
    def hungry(*_, **__):
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"
        )

    monkeypatch.setattr(loop, "backward", hungry)
    with pytest.raises(
        run.UserError, match=r"m s3: out of memory; lower m.micro_prompts \(now 0, 0"
    ):
        train(tmp_path, RUN)
    monkeypatch.setattr(loop, "backward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, RUN)
    with pytest.raises(RuntimeError, match="shapes"), run.enough_memory("x", "y"):
        raise RuntimeError("shapes do not fit")


@pytest.mark.parametrize("write", [1, 3, 11, 12, 16])
def test_a_disk_that_is_full_at_any_write_leaves_no_half_file(whole, tmp_path, monkeypatch, write):
    """The n-th write fails half-way; with room again the run gives the same bits."""
    plain, count = run.Path.write_bytes, []

    def full(self, content):
        count.append(self.name)
        if len(count) != write:
            return plain(self, content)
        plain(self, content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run.Path, "write_bytes", full)
        with pytest.raises(
            run.UserError, match=r"cannot be written \(No space left on device\); make"
        ):
            train(tmp_path, RUN)
    assert not list(tmp_path.rglob("*.partial"))
    history, weights, _ = train(tmp_path, RUN)
    assert equal(weights, whole[0]) and without_clocks(history).equals(whole[1])
