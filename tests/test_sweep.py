"""Sweeps: the file for W&B's real agent against a stand-in of the service, and the same file without W&B."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import yaml
from wandb_server import WandbServer

from scripts import sweep as sweep_script
from scripts import sweep_study, sweep_worker
from scripts.sweep_file import read_sweep
from scripts.sweep_space import suggest
from scripts.sweep_worker import Sweep
from src.command_line import parse_config
from src.registries import REGISTRIES
from utils import FAILED, IN_USE, ConfigError

ROOT = Path(__file__).resolve().parents[1]
SWEEP = ROOT / "scripts" / "sweep.py"
WANDB_PROGRAM = str(Path(sys.executable).with_name("wandb"))

# In the place of training.py: keeps its arguments, leaves a run folder whose score is its --discounting.
PROGRAM = """
import json, os, sys, time, signal
flags = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:] if "=" in word)
folder = os.path.join(flags["output_dir"], flags["group_name"], flags["exp_name"])
os.makedirs(folder, exist_ok=True)
with open(os.path.join(folder, "arguments"), "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
with open(os.path.join(folder, "entity"), "w") as file:
    file.write(os.environ.get("WANDB_ENTITY", ""))
with open(flags["run_dir_file"], "w") as file:
    print(folder, file=file)
if flags.get("use_ln") == "True" and flags.get("fail"):
    sys.exit("error: out of luck")
if flags.get("wait"):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    time.sleep(60)
with open(os.path.join(folder, "metrics.csv"), "w") as file:
    print("env_steps,score", "0,0.0", "9," + flags["discounting"], "10,", sep="\\n", file=file)
"""


@pytest.fixture
def desk(tmp_path):
    """desk(method, parameters, more of the file) -> a function that starts scripts/sweep.py there."""
    (tmp_path / "program.py").write_text(PROGRAM)

    def prepare(method="random", file=None, **parameters):
        parameters = parameters or {"discounting": {"min": 0.5, "max": 0.9}, "use_ln": {"values": [True, False]}}
        content = {"program": str(tmp_path / "program.py"), "method": method, "parameters": parameters}
        content["metric"] = {"name": "score", "goal": "maximize"}
        (tmp_path / "mine.yml").write_text(yaml.safe_dump(content | (file or {})))

        def start(*words, **options):
            command = [sys.executable, str(SWEEP), "mine.yml", *words]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            return subprocess.Popen(command, cwd=tmp_path, **pipes | options)

        return start

    return prepare


def finish(process, status=0):
    output = process.communicate(timeout=100)[0]
    assert process.returncode == status, output
    return output


def runs(tmp_path):
    """Run name -> the arguments of each time that it was started."""
    files = sorted(tmp_path.glob("runs/mine/run*/arguments"))
    return {path.parent.name: [json.loads(line) for line in path.read_text().splitlines()] for path in files}


@contextlib.contextmanager
def database(place):
    """The storage of a sweep, closed behind."""
    with sweep_study.opened_storage(sweep_study.sqlite_url(place)) as storage:
        yield storage


def study(tmp_path, act=lambda study: None):
    """The trials of the study, after `act` on it."""
    with database(tmp_path / "runs" / "sweeps" / "mine.db") as storage:
        found = optuna.load_study(study_name="mine", storage=storage)
        act(found)
        return found.trials


# Without W&B.


def test_runs_are_scored_by_their_csv_and_a_finished_sweep_does_nothing(desk, tmp_path):
    start = desk("bayes")
    output = finish(start("--runs", "3", "--workers", "2"))
    assert runs(tmp_path).keys() == {"run0", "run1", "run2"}
    for trial in study(tmp_path):
        (arguments,) = runs(tmp_path)[f"run{trial.number}"]
        assert f"--discounting={trial.params['discounting']}" in arguments
        assert f"--use_ln={trial.params['use_ln']}" in arguments
        assert 0.5 <= trial.params["discounting"] <= 0.9
        assert trial.value == trial.params["discounting"]  # the last row that has a score
    best = max(study(tmp_path), key=lambda trial: trial.value)
    assert f"best: run {best.number}, score {best.value:g}" in output
    before = runs(tmp_path)
    assert "3 of 3 runs have a score" in finish(start("--runs", "3"))
    assert runs(tmp_path) == before
    finish(start("--runs", "4", "--", "--h_dim=8"))
    assert runs(tmp_path).keys() == {"run0", "run1", "run2", "run3"}
    assert "--h_dim=8" in runs(tmp_path)["run3"][0]


def test_a_grid_is_run_once_and_whole_by_processes_that_share_it(desk, tmp_path):
    start = desk("grid", discounting={"values": [0.5, 0.6, 0.7]}, use_ln={"values": [True, False]}, h_dim={"value": 8})
    processes = [start("--workers", "1"), start("--workers", "2")]
    for process in processes:
        finish(process)
    assert all(len(times) == 1 for times in runs(tmp_path).values())
    searched = ("--discounting", "--use_ln")
    chosen = [tuple(word for word in times[0] if word.startswith(searched)) for times in runs(tmp_path).values()]
    assert sorted(chosen) == sorted(
        (f"--discounting={value}", f"--use_ln={switch}") for value in (0.5, 0.6, 0.7) for switch in (True, False)
    )
    assert all("--h_dim=8" in times[0] for times in runs(tmp_path).values())


TAKE_ALL = """
import sys
from scripts.sweep_study import open_storage, optuna
study = optuna.load_study(study_name="queue", storage=open_storage(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
while (trial := study.ask()).user_attrs:
    print(trial.number)
"""


def test_a_queued_run_is_taken_by_one_process(tmp_path):
    with database(tmp_path / "study.db") as storage:
        queue = optuna.create_study(study_name="queue", storage=storage)
        for _ in range(60):
            queue.enqueue_trial({}, user_attrs={"queued": True})
    command = [sys.executable, "-c", TAKE_ALL, f"sqlite:///{tmp_path / 'study.db'}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(3)]
    assert all(process.stdout.readline() == "ready\n" for process in processes)
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    taken = [int(line) for process in processes for line in process.communicate(timeout=100)[0].split()]
    assert sorted(taken) == list(range(60))


def test_a_failed_run_is_one_line_and_told_to_the_study(desk, tmp_path):
    start = desk("grid", discounting={"values": [0.5]}, use_ln={"values": [True, False]}, fail={"value": 1})
    output = finish(start(), status=1)
    (line,) = [line for line in output.splitlines() if "failed" in line]
    assert "status 1, error: out of luck" in line
    states = {trial.params["use_ln"]: trial.state.name for trial in study(tmp_path)}
    assert states == {True: "FAIL", False: "COMPLETE"}


def test_an_interrupted_sweep_resumes_the_run_it_left(desk, tmp_path):
    start = desk(discounting={"min": 0.5, "max": 0.9}, wait={"values": ["", "yes"]})
    process = start("--runs", "1", "--", "--wait=yes")
    wait_for(lambda: runs(tmp_path))
    process.send_signal(signal.SIGTERM)
    assert "the same command continues" in finish(process, status=75)
    finish(start("--runs", "1", "--", "--wait="))
    ((name, (first, again)),) = runs(tmp_path).items()
    assert name == "run0" and "--resume" in first
    assert first[:-1] == again[:-1]
    assert [trial.state.name for trial in study(tmp_path)] == ["FAIL", "COMPLETE"]


def test_a_run_of_a_process_that_died_is_taken_over(desk, tmp_path):
    start = desk(discounting={"min": 0.5, "max": 0.9}, wait={"values": ["", "yes"]})
    process = start("--runs", "1", "--", "--wait=yes")
    wait_for(lambda: runs(tmp_path))
    process.kill()
    process.communicate()  # the training it started continues without it, until it is told to wait no longer
    (trial,) = study(tmp_path)
    assert trial.state.name == "RUNNING"
    long_ago = time.time() - 2 * sweep_worker.DEAD_AFTER_SECONDS
    study(tmp_path, lambda found: optuna.trial.Trial(found, trial._trial_id).set_user_attr("alive", long_ago))
    finish(start("--runs", "1", "--", "--wait="))
    ((_, (first, again)),) = runs(tmp_path).items()
    assert first[:-1] == again[:-1]


@pytest.fixture
def sweep(desk, tmp_path, monkeypatch):
    """A sweep in this process, of one run."""
    desk()
    monkeypatch.chdir(tmp_path)
    described = read_sweep(tmp_path / "mine.yml")
    with database(tmp_path / "study.db") as storage:
        made = sweep_study.open_study("mine", storage, described, 1)
        yield Sweep(described, made, 1, [])


def test_a_training_that_was_left_alone_is_waited_for(sweep, tmp_path, monkeypatch):
    """Only scripts/sweep.py was killed: who takes over gets no for an answer as long as its training runs."""
    monkeypatch.setattr(sweep_worker, "IN_USE_SECONDS", 0.01)
    refusal = f"import sys; sys.exit({IN_USE})"
    program = tmp_path / "program.py"
    program.write_text(f"open({str(program)!r}, 'w').write({PROGRAM!r}); {refusal}")
    sweep.work(None)
    ((_, times),) = runs(tmp_path).items()
    assert len(times) == 1
    assert ([trial.state.name for trial in sweep.study.trials], sweep.failed) == (["COMPLETE"], 0)


def test_a_database_out_of_reach_costs_no_run(sweep, tmp_path, monkeypatch):
    def fail(*_):
        raise optuna.exceptions.StorageInternalError("out of reach")

    monkeypatch.setattr(optuna.trial.Trial, "set_user_attr", fail)
    monkeypatch.setattr(sweep_worker, "HEARTBEAT_SECONDS", 0.01)
    sweep.work(None)
    assert len(runs(tmp_path)) == 1
    assert [trial.state.name for trial in sweep.study.trials] == ["COMPLETE"]


def test_a_run_of_which_nothing_was_ever_heard_is_taken_over(sweep, monkeypatch):
    sweep.study.enqueue_trial({"discounting": 0.625, "use_ln": False}, user_attrs={"queued": True})
    sweep.study.ask()  # and its process dies
    assert sweep._next() is None
    monkeypatch.setattr(sweep_worker, "DEAD_AFTER_SECONDS", 0)
    trial = sweep._next()
    assert trial.user_attrs["goes_on"] == 0
    assert suggest(trial, sweep.sweep["parameters"]) == {"discounting": 0.625, "use_ln": False}


def test_a_run_that_another_process_has_taken_over_is_its(sweep):
    trial = sweep._next()
    sweep._queue_again(sweep.study.trials[0])
    sweep._queue_again(sweep.study.trials[0])
    sweep._tell(trial, 0.5)
    assert [trial.state.name for trial in sweep.study.trials] == ["FAIL", "WAITING"]


def test_studies_of_the_published_file_share_no_folder(tmp_path):
    file = ROOT / "scripts" / "sweep.yml"
    described = read_sweep(file)
    names = []
    for name in ("ant", "second"):
        made = optuna.create_study(study_name=name, sampler=optuna.samplers.RandomSampler(seed=0))
        settings = suggest(made.ask(), described["parameters"])
        command = Sweep(described, made, 1, [], str(tmp_path))._command(0, settings)
        names.append(parse_config(command[2:], REGISTRIES).group_name)
    assert names == ["ant", "second"]


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_slurm_script_runs_one_run_a_task(desk, tmp_path):
    start = desk()
    assert (
        finish(start("--runs", "5", "--workers", "2", "--slurm", "--", "--h_dim=8"))
        == "sbatch runs/sweeps/mine.sbatch\n"
    )
    script = tmp_path / "runs" / "sweeps" / "mine.sbatch"
    assert "#SBATCH --array=0-4%2\n" in script.read_text()
    assert "#SBATCH --signal=B:TERM@120\n" in script.read_text()  # without B: it would not reach the batch shell
    assert not runs(tmp_path)
    subprocess.run(["bash", str(script)], check=True, cwd="/", timeout=100)
    ((_, (arguments,)),) = runs(tmp_path).items()
    assert arguments[-1] == "--h_dim=8"


def test_studies_that_are_refused(tmp_path):
    sweep = {"method": "random", "metric": {"name": "score"}, "parameters": {"seed": {"values": [1, 2]}}}
    with database(tmp_path / "study.db") as storage:
        sweep_study.open_study("one", storage, sweep, 9)
        with pytest.raises(ConfigError, match="made from another sweep file"):
            sweep_study.open_study("one", storage, sweep | {"parameters": {"seed": {"values": [1, 3]}}}, 9)
        optuna.create_study(study_name="half", storage=storage)
        with pytest.raises(ConfigError, match="half is not made in full yet, or never was: --study NAME"):
            sweep_study.open_study("half", storage, sweep, 9)
    with pytest.raises(ConfigError, match="cannot open nothing://there"):
        sweep_study.open_storage("nothing://there")
    with pytest.raises(ConfigError, match="cannot open postgresql"):
        sweep_study.retry(lambda: sweep_study.open_storage("postgresql+psycopg://127.0.0.1:1/x"))


def test_runs_are_told_of_entity_project_and_variables(desk, tmp_path):
    command = ["${env}", "python", "${program}", "--where=${envvar:WHERE}", "${args_no_boolean_flags}"]
    command += ["--file", "${args_json_file}"]
    file = {"command": command, "entity": "me", "project": "ours"}
    start = desk(file=file, discounting={"value": 0.5}, use_ln={"value": True}, render={"value": False})
    finish(start("--runs", "1", "--", "--h_dim=8", env=os.environ | {"WHERE": "there"}))
    ((arguments,),) = runs(tmp_path).values()
    settings = tmp_path / "runs" / "sweeps" / "mine" / "run0.json"
    assert arguments[:5] == ["--where=there", "--discounting=0.5", "--use_ln", "--file", str(settings)]
    assert json.loads(settings.read_text()) == {"discounting": 0.5, "use_ln": True, "render": False}
    own = ["--resume", "--output_dir=runs", "--group_name=mine", "--exp_name=run0", "--project_name=ours"]
    assert arguments[5:] == [*own, "--run_dir_file=runs/sweeps/mine/run0.folders", "--h_dim=8"]
    assert (tmp_path / "runs" / "mine" / "run0" / "entity").read_text() == "me"


def test_flags_that_the_sweep_sets_are_named(desk, tmp_path):
    start = desk(discounting={"value": 0.5}, group_name={"value": "elsewhere"})
    output = finish(start("--runs", "1"))
    assert output.startswith("set by sweep.py, not by the file: group_name (the sweep's name)\n")
    assert runs(tmp_path).keys() == {"run0"}


def test_a_metric_that_reached_its_target_starts_no_more_runs(desk, tmp_path):
    metric = {"name": "score", "goal": "maximize", "target": 0.6}
    start = desk("grid", {"metric": metric}, discounting={"values": [0.5, 0.6, 0.7, 0.8]})
    output = finish(start())
    assert "2 of 4 runs have a score" in output
    assert runs(tmp_path).keys() == {"run0", "run1"}
    assert finish(start()) == output.partition("2 of")[1] + output.partition("2 of")[2]


def test_a_dry_run_starts_no_study(desk, tmp_path):
    start = desk(discounting={"min": 0.5, "max": 0.9})
    output = finish(start("--runs", "2", "--", "--dry_run"))
    assert output.count("its plan is in runs/sweeps/mine/dry_run/run") == 2
    assert [path.name for path in (tmp_path / "runs" / "sweeps").iterdir()] == ["mine"]
    assert runs(tmp_path)["run1"][0][-1] == "--dry_run" and "--resume" not in runs(tmp_path)["run1"][0]
    assert "1 of 1 runs have a score" in finish(start("--runs", "1"))


def test_programs_that_name_no_run_folder_are_told_what_is_wanted(desk, tmp_path):
    start = desk(discounting={"value": 0.5})
    (tmp_path / "program.py").write_text("print('trained')")
    assert "it has not written its run folder to the file of --run_dir_file" in finish(start("--runs", "1"), status=1)
    (tmp_path / "program.py").write_text("import argparse; argparse.ArgumentParser().parse_args()")
    output = finish(start("--runs", "1", "--study", "other"), status=1)
    assert "unrecognized arguments" in output and "--run_dir_file" in output


def test_scores_that_are_no_numbers_fail_the_run(desk, tmp_path):
    start = desk(discounting={"values": ["nan", "inf", "wide"]}, method="grid")
    output = finish(start(), status=1)
    assert "its score is nan" in output and "its score is inf" in output and "wide" in output
    assert {trial.state.name for trial in study(tmp_path)} == {"FAIL"}
    assert "0 of 3 runs have a score" in finish(start(), status=1)  # also when nothing is left to do


# What happens around a sweep costs it no run.


@pytest.mark.parametrize("output", ["full", "closed"])
def test_output_that_cannot_be_written_costs_no_run(desk, tmp_path, output):
    """A full log disk; a pipe whose reader has gone."""
    start = desk(discounting={"min": 0.5, "max": 0.9})
    if output == "full":
        with open("/dev/full", "w") as full:
            process = start("--runs", "2", stdout=full, stderr=full)
    else:
        read, write = os.pipe()
        os.close(read)
        process = start("--runs", "2", stdout=write, stderr=write)
        os.close(write)
    assert process.wait(100) == 0
    assert [trial.state.name for trial in study(tmp_path)] == ["COMPLETE", "COMPLETE"]


def test_a_sweep_without_any_output_runs(desk, tmp_path):
    start = desk(discounting={"min": 0.5, "max": 0.9})
    command = 'exec 1>&- 2>&-; exec "$@"'  # closed, not redirected
    words = [sys.executable, str(SWEEP), "mine.yml", "--runs", "1"]
    assert subprocess.run(["bash", "-c", command, "bash", *words], cwd=tmp_path, timeout=100).returncode == 0
    assert "1 of 1 runs have a score" in finish(start("--runs", "1"))


def test_a_log_that_cannot_be_opened_costs_no_run(sweep, tmp_path, capsys):
    (sweep.logs / "run0.log").mkdir()
    sweep.work(None)
    assert [trial.state.name for trial in sweep.study.trials] == ["COMPLETE"]
    assert "run0.log: Is a directory; the run goes without a log" in capsys.readouterr().err


def test_a_log_holds_all_attempts_and_the_reason_is_that_of_the_last(sweep):
    (sweep.logs / "run0.log").write_text("error: of another day\n")
    (Path(sweep.sweep["program"])).write_text("import sys; sys.exit('error: of today')")
    sweep.work(None)
    assert (sweep.logs / "run0.log").read_text() == "error: of another day\nerror: of today\n"


def test_how_a_run_ended_is_told_when_the_database_is_back(sweep, monkeypatch, capsys):
    told, calls = sweep.study.tell, []

    def tell(*args, **options):
        calls.append(args)
        if len(calls) < 4:
            raise optuna.exceptions.StorageInternalError("the disk is full")
        return told(*args, **options)

    monkeypatch.setattr(sweep_worker, "DATABASE_SECONDS", 0.01)
    monkeypatch.setattr(sweep.study, "tell", tell)
    sweep.work(None)
    assert [trial.state.name for trial in sweep.study.trials] == ["COMPLETE"]
    assert capsys.readouterr().err == "warning: waiting for the database: the disk is full\n"
    assert (sweep.failed, len(calls)) == (0, 4)


@pytest.mark.parametrize("error", [ZeroDivisionError("a slip"), KeyError("x"), RecursionError()])
def test_no_exception_of_a_worker_ends_with_status_0(sweep, monkeypatch, capsys, error):
    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(sweep_worker, "suggest", fail)
        assert sweep_script.run(sweep, [None]) == FAILED
    assert [trial.state.name for trial in sweep.study.trials] == ["FAIL"]
    assert f"run 0 failed: {type(error).__name__}" in capsys.readouterr().out
    monkeypatch.setattr(sweep, "_take_over", fail)
    assert sweep_script.run(sweep, [None]) == FAILED
    assert capsys.readouterr().err.startswith(f"error: a worker ended: {type(error).__name__}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_ask_the_sweep_and_its_runs_to_leave(desk, tmp_path, number):
    start = desk(discounting={"min": 0.5, "max": 0.9})
    process = start("--runs", "1", "--", "--wait=yes")
    wait_for(lambda: runs(tmp_path))
    process.send_signal(number)
    assert "left early" in finish(process, status=75)
    assert [trial.state.name for trial in study(tmp_path)] == ["FAIL", "WAITING"]


def test_a_lost_terminal_that_is_ignored_stays_ignored(desk, tmp_path):
    """As under nohup."""
    desk(discounting={"min": 0.5, "max": 0.9})
    words = [sys.executable, str(SWEEP), "mine.yml", "--runs", "1", "--", "--wait=yes"]
    process = subprocess.Popen(["nohup", *words], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: runs(tmp_path))
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.terminate()
    finish(process, status=75)


@pytest.mark.parametrize("status", [-signal.SIGHUP, -signal.SIGUSR2, 128 + signal.SIGTERM, 130, 75])
def test_runs_that_a_signal_ended_are_resumed(status):
    with pytest.raises(sweep_worker.Interrupted):
        sweep_worker.check_status(status, "")


# Names and paths of any kind.

STRANGE = "lr? 50% #2 {x} 'ö'"


def test_names_and_folders_with_signs_of_urls_and_shells(desk, tmp_path):
    start = desk(file={"name": STRANGE}, discounting={"min": 0.5, "max": 0.9}, text={"values": ["a b"]})
    words = ["--runs", "1", "--output_dir", "q?mark {y} 10%"]
    output = finish(start(*words))
    assert "'--text=a b'" in output
    folder = tmp_path / "q?mark {y} 10%"
    assert sorted(path.name for path in (folder / "sweeps").iterdir()) == [STRANGE, f"{STRANGE}.db"]
    assert (folder / STRANGE / "run0" / "metrics.csv").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"mine.yml", "program.py", folder.name}
    assert "1 of 1 runs have a score" in finish(start(*words))
    printed = finish(start(*words, "--slurm"))
    script = folder / "sweeps" / f"{STRANGE}.sbatch"
    assert sweep_script.shlex.split(printed) == ["sbatch", str(script.relative_to(tmp_path))]
    (line,) = [line for line in script.read_text().splitlines() if "--job-name" in line]
    assert sweep_script.shlex.split(line, comments=False)[1:] == [f"--job-name={STRANGE}"]
    subprocess.run(["bash", str(script)], check=True, cwd="/", timeout=100)  # finds the study: nothing is left to do
    assert len((folder / STRANGE / "run0" / "arguments").read_text().splitlines()) == 1


def test_paths_in_the_home_folder(desk, tmp_path):
    desk(discounting={"min": 0.5, "max": 0.9}, file={"program": "~/program.py"})
    home = os.environ | {"HOME": str(tmp_path)}
    words = ["~/mine.yml", "--runs=1", "--output_dir=~/there", "--storage=sqlite:///~/study.db"]
    (tmp_path / "elsewhere").mkdir()
    options = {"cwd": tmp_path / "elsewhere", "env": home, "capture_output": True, "text": True, "timeout": 100}
    done = subprocess.run([sys.executable, str(SWEEP), *words], **options)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "there" / "mine" / "run0" / "metrics.csv").exists() and (tmp_path / "study.db").exists()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_workers_take_gpus_in_turns(monkeypatch):
    assert sweep_script.devices(0, []) == [None]
    assert sweep_script.devices(0, ["0", "1"]) == ["0", "1"]
    assert sweep_script.devices(3, ["4", "7"]) == ["4", "7", "4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert sweep_script.visible_gpus() == ["2", "5"]


def test_the_published_file_is_legal():
    """Every value that it can choose is one that training.py takes."""
    sweep = read_sweep(ROOT / "scripts" / "sweep.yml")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(30):
        settings = suggest(study.ask(), sweep["parameters"])
        config = parse_config([f"--{name}={value}" for name, value in settings.items()], REGISTRIES)
        assert config.log_wandb and config.env_name == "ant"
    for name, spec in sweep["parameters"].items():
        for value in spec.get("values", []):
            assert getattr(parse_config([f"--{name}={value}"], REGISTRIES), name) == value


# With W&B: the real client and its agent.

# In the place of training.py: reads its arguments as that does, and keeps the result.
READS_FLAGS = f"""
import dataclasses, json, os, sys
sys.path.insert(0, {str(ROOT)!r})
from src.command_line import parse_config
from src.registries import REGISTRIES
config = dataclasses.asdict(parse_config(sys.argv[1:], REGISTRIES))
with open(os.environ["WANDB_RUN_ID"] + ".json", "w") as file:
    json.dump([os.environ["WANDB_SWEEP_ID"], sys.argv[1:], config], file)
"""


def agent(server, cwd, program, assignments, sweep_file):
    """Makes the sweep and runs its agent to the end; `program` is what it finds as training.py."""
    (cwd / "scripts").mkdir()
    (cwd / "scripts" / "sweep.yml").write_text(sweep_file)
    (cwd / "training.py").write_text(program)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = server.environment(HOME=str(cwd), PATH=path)
    for words in (("sweep", "--project", "exemplary_sweep", "./scripts/sweep.yml"), ("agent", "sweep0")):
        server.assignments = list(assignments)
        answer = subprocess.run(
            [WANDB_PROGRAM, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
        )
        assert answer.returncode == 0, answer.stderr
        environment |= {"WANDB_PROJECT": "exemplary_sweep"}
    return answer.stderr


@pytest.mark.slow
def test_what_the_agent_hands_out_reaches_the_training(tmp_path):
    text = (ROOT / "scripts" / "sweep.yml").read_text()
    constant = {name: spec["value"] for name, spec in yaml.safe_load(text)["parameters"].items() if "value" in spec}
    chosen = [
        {"discounting": 0.97, "contrastive_loss_fn": "dpo", "logsumexp_penalty": 0.5, "use_ln": True, "seed": 2},
        {"discounting": 0.96, "contrastive_loss_fn": "fb", "logsumexp_penalty": 1e-3, "use_ln": False, "seed": 0},
    ]
    with WandbServer() as server:
        agent(server, tmp_path, READS_FLAGS, [constant | each for each in chosen], text)
        assert yaml.safe_load(server.sweeps["sweep0"])["metric"]["name"] == "eval/episode_success"
        assert not server.assignments
    kept = [json.loads((tmp_path / f"sweep0run{left}.json").read_text()) for left in (1, 0)]
    for settings, (sweep_id, arguments, config) in zip(chosen, kept, strict=True):
        assert sweep_id == "sweep0"
        assert f"--use_ln={settings['use_ln']}" in arguments
        assert {name: config[name] for name in constant | settings} == constant | settings


@pytest.mark.slow
def test_a_sweep_trains_and_logs_into_its_runs(tmp_path):
    text = (ROOT / "scripts" / "sweep.yml").read_text()
    tiny = {"env_name": "probe", "num_timesteps": 160, "num_evals": 3, "num_eval_envs": 4, "num_envs": 4, "h_dim": 8}
    tiny |= {"episode_length": 8, "unroll_length": 5, "batch_size": 6, "min_replay_size": 10, "max_replay_size": 20}
    program = f"import runpy; runpy.run_path({str(ROOT / 'tests' / 'probe_training.py')!r}, run_name='__main__')"
    with WandbServer() as server:
        said = agent(server, tmp_path, program, [tiny | {"log_wandb": True, "use_ln": True, "seed": 1}], text)
        (run_id,) = server.runs
        run = server.runs[run_id]
        assert (run_id, run["sweep"], run["project"]) == ("sweep0run0", "sweep0", "exemplary_sweep"), said
        assert [row["env_steps"] for row in run["history"]] == [0, 100, 160]
        assert run["config"]["use_ln"]["value"] is True
        assert run["exit_code"] == 0
    with next(tmp_path.rglob("metrics.csv")).open(newline="") as file:
        assert [row["env_steps"] for row in csv.DictReader(file)] == ["0", "100", "160"]
