"""Resuming: what continues, bit for bit; what is refused, and how; how signals end a run."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow, tiny
from durability import arguments, at_moment, read_until, run_dirs, start_process

import training
from scripts import benchmark, crash_test
from scripts.export import ExportConfig
from scripts.render import RenderConfig
from src import resume
from src.checkpoint import device_tree, host_arrays, list_checkpoints
from src.command_line import parse
from src.output import read_rows
from src.process import Interruption

pytestmark = pytest.mark.usefixtures("probe_registered", "compiled_once")
# Moments of the tiny run: 0 evaluation, 1 and 2 prefill, 3 to 5 or fewer training, then an evaluation, and so on.


@pytest.fixture(scope="module")
def references(tiny_run, tmp_path_factory):
    """Runs that were left alone: references(num_seeds=2) -> their folders; each is trained once."""
    trained = {(): [tiny_run]}

    def train(**changes):
        key = tuple(sorted(changes.items()))
        if key not in trained:
            output_dir = tmp_path_factory.mktemp("reference")
            assert training.main(arguments(tiny(output_dir=str(output_dir), **changes))) == 0
            trained[key] = run_dirs(output_dir)
        return trained[key]

    return train


@pytest.fixture
def finished(finished_run):
    """The output folder of a finished run."""
    return finished_run.parents[2]


def interrupt(monkeypatch, config, moment, number=signal.SIGTERM):
    """Trains until a moment, where the signal arrives."""
    with monkeypatch.context() as patch:
        at_moment(patch, moment, lambda recorder: os.kill(os.getpid(), number))
        assert training.main(arguments(config)) == training.INTERRUPTED


# What continues.


@pytest.mark.parametrize(
    ("moment", "changes"),
    [
        (0, {}),
        slow(1, {"normalize_observations": True}),
        slow(2, {"fresh_goals": False}),
        slow(4, {"num_seeds": 2}),
        (3, {"action_chunk": 3, "num_critics": 2, "goal_proposal": "achieved"}),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(monkeypatch, references, tmp_path, moment, changes, capsys):
    config = tiny(output_dir=str(tmp_path), **changes)
    interrupt(monkeypatch, config, moment)
    first_dirs = run_dirs(tmp_path)
    assert "SIGTERM: left at" in capsys.readouterr().out
    assert training.main(arguments(config, "--resume")) == 0
    assert run_dirs(tmp_path) == first_dirs
    for reference, resumed in zip(references(**changes), first_dirs, strict=True):
        assert crash_test.compare(reference, resumed) == []


def test_rows_after_the_checkpoint_and_a_torn_line_are_written_again(monkeypatch, references, tmp_path):
    config = tiny(output_dir=str(tmp_path))
    interrupt(monkeypatch, config, 3)
    (run_dir,) = run_dirs(tmp_path)
    with (run_dir / "metrics.csv").open("a") as file:
        file.write("100,1.0\n160,")
    assert training.main(arguments(config, "--resume", str(run_dir))) == 0
    assert crash_test.compare(references()[0], run_dir) == []


def test_a_run_can_be_made_longer(references, tmp_path):
    """An evaluation changes nothing of a run, so 80 env steps and then 160 end where 160 end."""
    config = tiny(output_dir=str(tmp_path), num_timesteps=80)
    assert training.main(arguments(config)) == 0
    longer = tiny(output_dir=str(tmp_path))
    assert training.main(arguments(longer, "--resume")) == 0
    (run_dir,) = run_dirs(tmp_path)
    assert "params.npz" not in crash_test.compare(references()[0], run_dir)
    steps = [row["env_steps"] for row in read_rows(run_dir / "metrics.csv", 10**9)]
    assert steps == ["0", "60", "80", "100", "160"]


def test_finished_runs_say_so(finished, capsys):
    assert training.main(arguments(tiny(output_dir=str(finished)), "--resume")) == 0
    assert "nothing left to train" in capsys.readouterr().out


def test_a_finished_run_of_several_seeds_names_them_all(references, capsys):
    """So that a sweep scores it by all of them."""
    folders = references(num_seeds=2)
    capsys.readouterr()
    assert training.main(arguments(tiny(output_dir=str(folders[0].parents[2]), num_seeds=2), "--resume")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" is finished")[0] for line in lines] == [f"nothing left to train: {each}" for each in folders]


def test_a_bare_resume_without_a_run_begins_one(tmp_path, capsys):
    config = tiny(output_dir=str(tmp_path), num_evals=1, keep_policies=2)
    assert training.main(arguments(config, "--resume")) == 0
    assert "a new one" in capsys.readouterr().out
    assert len(run_dirs(tmp_path)) == 1


def test_without_replay_a_resumed_run_refills_it_and_says_so(monkeypatch, tmp_path, capsys):
    config = tiny(output_dir=str(tmp_path), checkpoint_replay=False)
    interrupt(monkeypatch, config, 3)
    (run_dir,) = run_dirs(tmp_path)
    assert "buffer_state" not in next(run_dir.rglob("_METADATA")).read_text()
    assert training.main(arguments(config, "--resume")) == 0
    assert "filling it by 40 env steps" in capsys.readouterr().out
    assert [row["env_steps"] for row in read_rows(run_dir / "metrics.csv", 10**9)] == ["0", "100", "160"]


def test_batches_of_seeds_go_on_where_they_were(monkeypatch, references, tmp_path, capsys):
    """Interrupted in the second batch: the first is finished by then, and every seed ends as it would have alone."""
    config = tiny(output_dir=str(tmp_path), num_seeds=2, seed_batch=1)
    per_batch = 3 + 2 + 6  # evaluations, prefill and training steps, each of its own at most
    interrupt(monkeypatch, config, per_batch + 1)
    output = capsys.readouterr().out
    assert "seeds       0 to 0, of 2" in output and "seeds       1 to 1, of 2" in output
    assert "--resume newest" in output and "--num_seeds 2" in output
    assert training.main(arguments(config, "--resume")) == 0
    assert capsys.readouterr().out.count("nothing left to train") == 1
    first, second = run_dirs(tmp_path)
    for run_dir, seed in ((first, 0), (second, 1)):
        (alone,) = references(seed=seed)
        assert crash_test.timeless_rows(run_dir / "metrics.csv") == crash_test.timeless_rows(alone / "metrics.csv")


@pytest.mark.parametrize("late", ["Recorder.close", "train_batch"])
def test_a_signal_as_a_batch_ends_is_kept_for_the_next(monkeypatch, tmp_path, capsys, late):
    """While its files are closed, or between two batches: the first is finished, the second not begun."""
    config = tiny(output_dir=str(tmp_path), num_seeds=2, seed_batch=1)
    owner, name = (training.Recorder, "close") if late == "Recorder.close" else (training, "train_batch")
    original = getattr(owner, name)

    def and_a_signal(*args):
        result = original(*args)
        os.kill(os.getpid(), signal.SIGTERM)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, and_a_signal)
        assert training.main(arguments(config)) == training.INTERRUPTED
    assert "SIGTERM: left after seed 0; continue with  python training.py" in capsys.readouterr().out
    assert len(run_dirs(tmp_path)) == 1
    assert training.main(arguments(config, "--resume")) == 0
    assert len(run_dirs(tmp_path)) == 2


@pytest.mark.parametrize("together", [1, 2])
def test_a_bare_resume_keeps_the_size_of_the_batches(monkeypatch, tmp_path, capsys, together):
    """On a machine with memory for as many seeds, then on one that would train them otherwise."""
    config = tiny(output_dir=str(tmp_path), num_seeds=2)
    monkeypatch.setattr(resume, "seeds_that_fit", lambda *_: together)
    interrupt(monkeypatch, config, 3)
    assert ("--seed_batch 1" in capsys.readouterr().out) == (together == 1)
    monkeypatch.setattr(resume, "seeds_that_fit", lambda *_: 3 - together)
    assert training.main(arguments(config, "--resume")) == 0
    assert capsys.readouterr().out.count("resume      at ") == 1
    assert len(run_dirs(tmp_path)) == 2


@pytest.fixture
def two_seeds(references, tmp_path):
    """The folders of a finished run of two seeds, and the command that trains it longer."""
    shutil.copytree(references(num_seeds=2)[0].parents[2], tmp_path / "runs")
    longer = tiny(output_dir=str(tmp_path / "runs"), num_seeds=2, num_timesteps=180)
    return run_dirs(tmp_path / "runs"), arguments(longer)


def the_folder(first, tmp_path):
    return first


def a_link(first, tmp_path):
    (tmp_path / "latest").symlink_to(first)
    return tmp_path / "latest"


def a_link_to_its_checkpoint(first, tmp_path):
    (tmp_path / "latest").symlink_to(list_checkpoints(first)[-1])
    return tmp_path / "latest"


def a_way_around(first, tmp_path):
    return first / "checkpoints" / ".." / ".." / first.name


def another_name(first, tmp_path):
    return first.rename(first.with_name("the best one, überhaupt"))


@pytest.mark.parametrize(
    "way", [a_link, a_way_around, *map(slow, (the_folder, a_link_to_its_checkpoint, another_name))]
)
def test_the_other_seeds_are_found_whatever_way_leads_to_the_first(two_seeds, tmp_path, way):
    (first, second), words = two_seeds
    assert training.main([*words, "--resume", str(way(first, tmp_path))]) == 0
    assert [path.name for path in list_checkpoints(second)] == ["000000000180"]


def test_a_seed_whose_folder_is_gone_is_named(two_seeds, capsys):
    (first, second), words = two_seeds
    shutil.rmtree(second)
    error = refusal(capsys, *words, "--resume", str(first))
    assert str(second) in error and "not there" in error


@pytest.mark.parametrize("form", ["--output_dir=~/runs", *map(slow, ("--output_dir ~/runs", "--output_dir=~/./runs/"))])
def test_a_tilde_is_the_home_also_where_the_shell_leaves_it(monkeypatch, tmp_path, form):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    config = tiny(num_evals=1, run_dir_file="~/folders.txt")
    assert training.main([*arguments(config), *form.split()]) == 0
    (run_dir,) = run_dirs(tmp_path / "runs")
    assert (tmp_path / "folders.txt").read_text() == f"{run_dir}\n"
    longer = arguments(tiny(num_evals=1, num_timesteps=180), f"--resume=~/{run_dir.relative_to(tmp_path)}")
    assert training.main(longer) == 0
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("config_class", "words"),
    [
        (benchmark.BenchmarkFlags, []),
        (benchmark.CheckpointFlags, []),
        (crash_test.CrashConfig, []),
        (ExportConfig, ["~/run"]),
        (RenderConfig, ["~/run"]),
    ],
)
def test_scripts_write_into_the_home_too(monkeypatch, config_class, words):
    monkeypatch.setenv("HOME", "/there")
    config = parse(config_class, [*words, "--out=~/file.npz"], "a script")
    assert config.out == "/there/file.npz" and getattr(config, "run_dir", "/there/run") == "/there/run"


def test_a_home_that_does_not_exist_is_refused(capsys):
    assert "--output_dir ~nobody-here/runs: " in refusal(capsys, "--output_dir=~nobody-here/runs")


@pytest.mark.parametrize("flag", ["--resume=", "--output_dir=", "--resume --output_dir="])
@pytest.mark.parametrize("name", ["x" * 300, "loop", "loop/runs", "file/runs"])
def test_paths_that_the_system_refuses_are_refused_in_one_line(monkeypatch, tmp_path, capsys, flag, name):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("file").touch()
    line = refusal(capsys, *arguments(tiny(num_evals=1)), *f"{flag}{name}".split())
    assert name.partition("/")[0] in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


def test_run_folders_are_listed_before_training(monkeypatch, tmp_path):
    """Those of all batches by its end, and those of finished runs too."""
    listed = tmp_path / "folders.txt"
    config = tiny(output_dir=str(tmp_path), num_seeds=2, seed_batch=1, num_evals=1, run_dir_file=str(listed))
    seen = []
    with monkeypatch.context() as patch:
        at_moment(patch, 0, lambda recorder: seen.append(listed.read_text().splitlines()))
        assert training.main(arguments(config)) == 0
    folders = [str(path) for path in run_dirs(tmp_path)]
    assert seen == [folders[:1]] and listed.read_text().splitlines() == folders
    listed.write_text("of another run\n")
    assert training.main(arguments(config, "--resume")) == 0
    assert listed.read_text().splitlines() == folders


def test_a_list_of_run_folders_that_cannot_be_written_is_refused(tmp_path, capsys):
    config = tiny(output_dir=str(tmp_path / "runs"), run_dir_file=str(tmp_path / "none" / "folders.txt"))
    assert "--run_dir_file: cannot write" in refusal(capsys, *arguments(config))
    assert not (tmp_path / "runs").exists()


def test_one_folder_does_not_stand_for_several_batches(finished, capsys):
    (run_dir,) = run_dirs(finished)
    more = ("--resume", str(run_dir), "--num_seeds", "4", "--seed_batch", "2")
    assert training.main(arguments(tiny(output_dir=str(finished)), *more)) == training.REFUSED
    error = capsys.readouterr().err
    assert "give a bare --resume" in error and "--num_seeds 2" in error and error.count("\n") == 1


def test_the_newest_checkpoint_and_the_chosen_policies_are_kept(tmp_path):
    config = tiny(output_dir=str(tmp_path), num_evals=5, keep_policies=2)
    assert training.main(arguments(config)) == 0
    (run_dir,) = run_dirs(tmp_path)
    assert [path.name for path in list_checkpoints(run_dir)] == ["000000000160"]
    policies = sorted(path.name for path in (run_dir / "policies").iterdir())
    assert policies == ["000000000120.npz", "000000000160.npz"]
    last = np.load(run_dir / "params.npz")
    newest = np.load(run_dir / "policies" / "000000000160.npz")
    assert all(np.array_equal(last[name], newest[name]) for name in last)
    assert (run_dir / "best_params.npz").exists()


def test_arrays_survive_the_way_through_the_host():
    tree = {"key": jax.random.key(3), "empty": jnp.zeros((0, 2)), "flag": jnp.array(True), "x": jnp.arange(3.0)}
    arrays = host_arrays(tree)
    back = device_tree({name: array for name, array in arrays.items() if array.size}, tree)
    assert jax.random.key_data(back["key"]).tolist() == jax.random.key_data(tree["key"]).tolist()
    assert back["empty"].shape == (0, 2)
    assert back["x"].tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(ValueError, match="x should have shape"):
        device_tree(arrays | {"x": np.zeros(4)}, tree)


# What is refused.


def refusal(capsys, *args):
    """The one line with which a command is refused."""
    assert training.main(list(args)) == training.REFUSED
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_other_flags_are_refused_one_by_one(finished, capsys):
    config = tiny(output_dir=str(finished), batch_size=5, energy_fn="dot", num_timesteps=100)
    error = refusal(capsys, *arguments(config, "--resume"))
    for difference in ("--batch_size: 6 -> 5", "--energy_fn: l2 -> dot", "--num_timesteps: 160 -> 100"):
        assert difference in error


def test_what_is_no_run_folder_is_refused(tmp_path, capsys):
    assert "not a run folder" in refusal(capsys, *arguments(tiny(), "--resume", str(tmp_path)))


def _truncate(checkpoint):
    file = max((path for path in (checkpoint / "state").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(file, file.stat().st_size // 2)


def _flip_a_bit(checkpoint):
    file = max((path for path in (checkpoint / "state").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _make_newer(checkpoint):
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))


def _make_foreign(checkpoint):
    (checkpoint / "manifest.json").write_text('["of another program"]')


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_truncate, "should have"),
        (_flip_a_bit, "is damaged"),
        (_make_newer, "its format is 99"),
        (_make_foreign, "no readable manifest"),
    ],
)
@pytest.mark.parametrize("has_one_before", [True, False])
def test_unusable_checkpoints_are_refused_by_name_and_the_one_before_is_offered(
    finished, capsys, damage, words, has_one_before
):
    (run_dir,) = run_dirs(finished)
    (newest,) = list_checkpoints(run_dir)
    before = newest.with_name("000000000150")
    if has_one_before:
        shutil.copytree(newest, before)
    damage(newest)
    longer = tiny(output_dir=str(finished), num_timesteps=200)
    error = refusal(capsys, *arguments(longer, "--resume", str(run_dir)))
    assert words in error
    assert str(newest) in error
    assert (f"--resume {before}" if has_one_before else "none before") in error


def test_the_offered_checkpoint_can_be_resumed(finished):
    (run_dir,) = run_dirs(finished)
    (newest,) = list_checkpoints(run_dir)
    shutil.copytree(newest, newest.with_name("000000000150"))
    _truncate(newest)
    longer = tiny(output_dir=str(finished), num_timesteps=200)
    assert training.main(arguments(longer, "--resume", str(newest.with_name("000000000150")))) == 0
    assert [path.name for path in list_checkpoints(run_dir)] == ["000000000200"]


def test_nothing_is_unpickled(finished, monkeypatch):
    """Loading a run works where unpickling is impossible."""
    (run_dir,) = run_dirs(finished)
    code = (
        "import pickle, sys; sys.argv = sys.argv[1:]; import probe_training as p\n"
        "def refuse(*args, **kwargs): raise AssertionError('unpickled')\n"
        "pickle.load = pickle.loads = pickle.Unpickler = refuse\n"
        "with p.registered(probe=p.ProbeEnv): sys.exit(p.training.main(sys.argv[1:]))"
    )
    longer = arguments(tiny(output_dir=str(finished), num_timesteps=200), "--resume", str(run_dir))
    words = [sys.executable, "-c", code, "training.py", *longer, "--no_compilation_cache"]
    subprocess.run(words, check=True, cwd=Path(__file__).parent, capture_output=True)


# Signals, sent to a process of its own.


LEAVING = [signal.SIGTERM, *map(slow, (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2))]


@pytest.mark.parametrize("number", LEAVING)
def test_signals_save_and_leave_with_a_status_of_their_own(tmp_path, number):
    config = tiny(output_dir=str(tmp_path), num_timesteps=10**9, num_evals=2)
    process = start_process(config)
    read_until(process, "checkpoint  ")
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == training.INTERRUPTED, output
    (run_dir,) = run_dirs(tmp_path)
    assert f"--resume {run_dir}" in output
    (checkpoint,) = list_checkpoints(run_dir)
    assert int(checkpoint.name) > 0


@pytest.mark.slow
def test_a_hangup_that_is_ignored_stays_ignored(tmp_path):
    """As under nohup; other signals are noticed still."""
    config = tiny(output_dir=str(tmp_path), num_timesteps=10**9, num_evals=2)
    process = start_process(config, shell="trap '' HUP; exec \"$@\"")
    output = read_until(process, "checkpoint  ")
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=2)
    process.send_signal(signal.SIGUSR2)
    output += process.communicate(timeout=60)[0]
    assert process.returncode == training.INTERRUPTED, output
    assert "SIGUSR2: left at" in output and "SIGHUP" not in output


def test_a_signal_before_training_leaves_at_once(tmp_path):
    process = start_process(tiny(output_dir=str(tmp_path)))
    read_until(process, "run folder")
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=20)[0]
    assert process.returncode == training.INTERRUPTED, output
    assert "leaving at once" in output


def test_a_second_ctrl_c_leaves_at_once(monkeypatch, tmp_path):
    interruption = Interruption()
    interruption.started = True
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    with interruption.noticed():
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.requested == "SIGINT" and not left
        os.kill(os.getpid(), signal.SIGINT)
    assert left == [130]


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(tmp_path):
    """The short form of scripts/crash_test.py."""
    flags = " ".join(arguments(tiny(num_timesteps=16000, num_evals=120))).replace("--env_name probe", "")
    args = ["--env_name", "probe", "--kills", "6", "--out", str(tmp_path), "--program", "tests/probe_training.py"]
    assert crash_test.main([*args, f"--flags={flags}"]) == 0
