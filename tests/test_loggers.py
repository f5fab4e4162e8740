"""W&B's real client against a stand-in of its service, in good and bad times; TensorBoard's event files."""

import contextlib
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb
import yaml
from conftest import tiny
from durability import arguments, run_dirs, start_process
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog
from wandb_server import WandbServer

import training
from src.loggers import TensorBoardLogger, WandbLogger, check_wandb
from src.output import read_rows
from utils import REFUSED

WANDB_PROGRAM = str(Path(sys.executable).with_name("wandb"))


@pytest.fixture
def server():
    with WandbServer() as server:
        yield server


@pytest.fixture
def point_at(monkeypatch, tmp_path):
    """point_at(server) makes this process log there; W&B's state in this process goes with the test."""

    def point(server, **more):
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            monkeypatch.delenv(name)
        own = {"WANDB_INIT_TIMEOUT": "3", "WANDB_FINISH_TIMEOUT": "3", "HOME": str(tmp_path)}
        for name, value in server.environment(**own | more).items():
            monkeypatch.setenv(name, value)

    monkeypatch.setattr(WandbLogger, "waited_in_vain", False)
    monkeypatch.setenv("WANDB_SERVICE", "")  # noted, so that what W&B writes there is undone
    yield point
    wandb.teardown()


def steps(run):
    """The env steps in the order in which they arrived."""
    return [row["env_steps"] for row in run["history"] if "x" in row]


def upload_later(printed, server):
    """Runs the commands that were printed, as one; returns how many they were."""
    commands = [line.partition("with  wandb ")[2].split() for line in printed.splitlines() if "wandb sync" in line]
    words = dict.fromkeys(word for command in commands for word in command)
    answer = subprocess.run(
        [WANDB_PROGRAM, *words], env=server.environment(), capture_output=True, text=True, timeout=100
    )
    assert answer.returncode == 0, answer.stderr
    return len(commands)


# Weights & Biases, in good times.


def test_config_metrics_parameters_videos_and_pictures_arrive(server, point_at, tmp_path, capsys):
    point_at(server)
    run_dir = tmp_path / "run"
    (run_dir / "videos").mkdir(parents=True)
    (run_dir / "params.npz").write_bytes(b"parameters")
    (run_dir / "videos" / "best.mp4").write_bytes(b"frames")
    Image.new("RGB", (2, 2)).save(run_dir / "energy.png")
    config = tiny(project_name="project", group_name="group", energy_fn="dot")
    logger = WandbLogger(config, run_dir)
    logger.log({"x": 1.0}, 0)
    logger.log({"x": 2.0, "training/y": 3.0}, 100)
    logger.close()
    ((run_id, run),) = server.runs.items()
    assert (run["project"], run["group"], run["name"], run_id) == ("project", "group", "run", logger.run_id)
    assert {name: run["config"][name]["value"] for name in ("env_name", "energy_fn", "num_envs")} == {
        "env_name": "probe",
        "energy_fn": "dot",
        "num_envs": 4,
    }
    logged = [{name: row.get(name) for name in ("env_steps", "x", "training/y")} for row in run["history"]]
    assert logged == [
        {"env_steps": 0, "x": 1.0, "training/y": None},
        {"env_steps": 100, "x": 2.0, "training/y": 3.0},
    ]
    assert [row["_step"] for row in run["history"]] == [0, 100]
    defined = run["config"]["_wandb"]["value"]["m"]  # 1: name, 2: pattern, 5: the axis, numbered from 1
    axes = {defined[metric["5"] - 1].get("1") for metric in defined if "5" in metric}
    assert axes == {"env_steps"}
    assert run["exit_code"] == 0
    (artifact,) = server.artifacts
    assert (artifact["type"], artifact["run"], artifact["committed"]) == ("model", run_id, True)
    assert server.uploads[f"{artifact['id']}/params.npz"] == b"parameters"
    assert {run["summary"][name]["_type"] for name in ("videos/best", "pictures/energy")} == {
        "video-file",
        "image-file",
    }
    assert b"frames" in server.uploads.values()
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_seeds_are_runs_of_one_group_and_a_resumed_run_goes_on(server, tmp_path):
    """The whole training, in processes of its own."""
    environment = server.environment(HOME=str(tmp_path))
    config = tiny(output_dir=str(tmp_path), log_wandb=True, num_seeds=2, num_timesteps=80, group_name="group")
    for more in ([], ["--num_timesteps", "160", "--resume"]):
        process = start_process(config, *more, env=environment)
        output = process.communicate(timeout=200)[0]
        assert process.returncode == 0, output
        assert "wandb sync" not in output
    assert len(server.runs) == 2
    assert {run["group"] for run in server.runs.values()} == {"group"}
    by_name = {run["name"]: run for run in server.runs.values()}
    for seed, run_dir in enumerate(run_dirs(tmp_path)):
        run, rows = by_name[run_dir.name], read_rows(run_dir / "metrics.csv", 10**9)
        assert run["config"]["seed"]["value"] == seed
        assert [row["env_steps"] for row in run["history"]] == [int(row["env_steps"]) for row in rows]
        name = "eval/episode_dist"
        assert [row[name] for row in run["history"]] == pytest.approx([float(row[name]) for row in rows])
    assert len({run["history"][0]["eval/episode_dist"] for run in server.runs.values()}) == 2


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_evaluations_are_not_logged_twice(server, point_at, tmp_path, capsys, mode):
    """A run that was killed after evaluations that its checkpoint does not hold repeats them."""
    point_at(server)
    config = tiny(wandb_mode=mode)
    first = WandbLogger(config, tmp_path)
    for step in (0, 10, 20):
        first.log({"x": step}, step)
    first.close()
    time.sleep(1.1)  # W&B names its folders by the second
    second = WandbLogger(config, tmp_path, first.run_id)
    for step in (10, 20, 30):
        second.log({"x": step}, step)
    capsys.readouterr()
    second.close()
    if mode == "offline":
        assert server.requests == []
        upload_later(capsys.readouterr().out, server)
    ((run_id, run),) = server.runs.items()
    assert run_id == first.run_id
    assert steps(run) == [0, 10, 20, 30]


# Weights & Biases, in bad times: what happens is said, nothing waits for long, nothing is lost.


def test_without_an_account_nobody_is_asked(server, point_at, tmp_path, capsys):
    point_at(server, WANDB_API_KEY="")
    logger = WandbLogger(tiny(), tmp_path)
    logger.log({"x": 1}, 10)
    logger.close()
    assert server.requests == []
    printed = capsys.readouterr()
    assert printed.err == ""
    upload_later(printed.out, server)
    (run,) = server.runs.values()
    assert steps(run) == [10]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["refuses", "drops"])
def test_out_of_reach_at_the_start(server, point_at, tmp_path, capsys, fault):
    with WandbServer(dropping=True) as gone:
        if fault == "refuses":
            gone.close()
        point_at(gone)
        started = time.monotonic()
        loggers = [WandbLogger(tiny(seed=seed), tmp_path / f"run{seed}") for seed in (0, 1)]
        for logger in loggers:
            logger.log({"x": 1}, 10)
            logger.close()
        assert time.monotonic() - started < 40
    printed = capsys.readouterr()
    assert printed.err.count("warning: W&B failed, training continues") == 1  # the other seed does not wait again
    assert upload_later(printed.out, server) == 2
    assert [steps(run) for run in server.runs.values()] == [[10], [10]]


@pytest.mark.parametrize("resumed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_seed_that_cannot_start_leaves_the_others_online(server, point_at, tmp_path, capsys, resumed):
    point_at(server, WANDB_FINISH_TIMEOUT="20")
    run_id = None
    if resumed:
        earlier = WandbLogger(tiny(seed=1), tmp_path / "second")
        earlier.log({"x": 0}, 0)
        earlier.close()
        run_id = earlier.run_id
    first = WandbLogger(tiny(seed=0), tmp_path / "first")
    first.log({"x": 1}, 10)
    server.dropping = True
    second = WandbLogger(tiny(seed=1), tmp_path / "second", run_id)
    server.dropping = False
    for logger in (first, second):
        logger.log({"x": 2}, 20)
        logger.close()
    assert steps(server.runs[first.run_id]) == [10, 20]
    printed = capsys.readouterr()
    assert printed.err.count("warning: ") == 1
    assert upload_later(printed.out, server) == 1
    assert steps(server.runs[second.run_id]) == ([0, 20] if resumed else [20])
    assert second.run_id == (run_id or second.run_id)
    assert len(server.runs) == 2


def test_the_files_of_one_seed_are_not_those_of_the_others(server, point_at, tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise TimeoutError("fails")

    point_at(server)
    first, second, third = loggers = [WandbLogger(tiny(seed=seed), tmp_path / f"run{seed}") for seed in range(3)]
    monkeypatch.setattr(first.run, "log_artifact", fail)
    for logger in loggers:
        (logger.run_dir / "params.npz").write_bytes(b"parameters")
        logger.log({"x": 1}, 10)
        logger.close()
    printed = capsys.readouterr()
    assert printed.err.count("warning: ") == 1
    assert printed.out.count("wandb sync") == 1
    committed = {artifact["run"] for artifact in server.artifacts if artifact["committed"]}
    assert committed == {second.run_id, third.run_id}
    assert [steps(server.runs[logger.run_id]) for logger in loggers] == [[10]] * 3


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "fault"), [("middle", "refuses"), ("middle", "drops"), ("end", "drops")])
def test_out_of_reach_later(point_at, tmp_path, capsys, moment, fault):
    with WandbServer() as server, WandbServer() as healthy:
        point_at(server)
        loggers = [WandbLogger(tiny(seed=seed), tmp_path / f"run{seed}") for seed in (0, 1)]
        for step in (10, 20):
            for logger in loggers:
                logger.log({"x": step}, step)
            if (step, moment) in ((10, "middle"), (20, "end")):
                server.close() if fault == "refuses" else setattr(server, "dropping", True)
        started = time.monotonic()
        for logger in loggers:
            logger.close()
        assert time.monotonic() - started < 40
        printed = capsys.readouterr()
        assert "warning: W&B failed, training continues" in printed.err
        wandb.teardown()  # as at the end of the process
        assert upload_later(printed.out, healthy) == 2
        assert [steps(run) for run in healthy.runs.values()] == [[10, 20], [10, 20]]


@pytest.mark.slow
def test_a_training_whose_service_goes_away_ends_well_and_soon(server, tmp_path):
    config = tiny(output_dir=str(tmp_path), log_wandb=True, num_seeds=2)
    environment = server.environment(HOME=str(tmp_path), WANDB_FINISH_TIMEOUT="5")
    process = start_process(config, env=environment)
    server.wait_until(lambda: len(server.runs) == 2)
    server.close()
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert "Traceback" not in output
    assert output.count("wandb sync") == 2
    assert all((run_dir / "params.npz").exists() for run_dir in run_dirs(tmp_path))


# TensorBoard.


def events(folder):
    """All events of the files, in the order of their names; each is framed by length, checksum and checksum."""
    read = []
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            read.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return read


def scalars(folder):
    return [
        (event.step, {value.tag: value.simple_value for value in event.summary.value})
        for event in events(folder)
        if event.summary.value
    ]


def test_tensorboard_holds_what_was_logged_at_once(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.log({"a/b": 0.5, "c": 2.0}, 7)
    logger.log({"c": 3.0}, 9)
    expected = [(7, {"a/b": 0.5, "c": 2.0}), (9, {"c": 3.0})]
    assert scalars(tmp_path / "tensorboard") == expected
    logger.close()
    assert scalars(tmp_path / "tensorboard") == expected


def test_tensorboard_hides_what_a_resumed_run_repeats(tmp_path):
    killed = TensorBoardLogger(tmp_path)
    killed.log({"c": 1.0}, 7)
    resumed = TensorBoardLogger(tmp_path, last_env_step=7)
    resumed.log({"c": 2.0}, 9)
    resumed.close()
    killed.close()
    (begin,) = [event for event in events(tmp_path / "tensorboard") if event.HasField("session_log")]
    assert (begin.step, begin.session_log.status) == (8, SessionLog.START)


def test_tensorboard_catches_up_after_a_failure(tmp_path, capsys):
    (tmp_path / "tensorboard").write_text("in the way")
    logger = TensorBoardLogger(tmp_path)
    logger.log({"c": 1.0}, 7)
    assert "warning: TensorBoard failed, training continues" in capsys.readouterr().err
    (tmp_path / "tensorboard").unlink()
    logger.log({"c": 2.0}, 9)
    logger.close()
    assert scalars(tmp_path / "tensorboard") == [(7, {"c": 1.0}), (9, {"c": 2.0})]
    assert capsys.readouterr().err == ""


def test_a_training_logs_to_tensorboard(probe_registered, tmp_path):
    config = tiny(output_dir=str(tmp_path), log_tensorboard=True)
    assert training.main(arguments(config)) == 0
    (run_dir,) = run_dirs(tmp_path)
    rows = read_rows(run_dir / "metrics.csv", 10**9)
    logged = scalars(run_dir / "tensorboard")
    assert [step for step, _ in logged] == [int(row["env_steps"]) for row in rows]
    assert logged[-1][1]["eval/episode_dist"] == pytest.approx(float(rows[-1]["eval/episode_dist"]))


def test_several_seeds_under_an_agent_are_refused(monkeypatch, probe_registered, tmp_path, capsys):
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    config = tiny(output_dir=str(tmp_path), num_seeds=2, log_wandb=True)
    assert training.main(arguments(config)) == REFUSED
    assert (
        capsys.readouterr().err == "error: --num_seeds 2: a run of a W&B sweep is one seed; sweep over `seed` instead\n"
    )
    assert not list(tmp_path.iterdir())


# What W&B would refuse, or show otherwise than it is trained, is refused before training.


@pytest.fixture
def refused(monkeypatch, probe_registered, tmp_path, capsys):
    """refused(variables, flags) -> the line that refuses a training which would log to W&B, before it leaves files."""

    def refuse(variables=None, **changes):
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            monkeypatch.delenv(name)
        for name, value in (variables or {}).items():
            monkeypatch.setenv(name, value)
        config = tiny(output_dir=str(tmp_path / "runs"), **{"log_wandb": True} | changes)
        assert training.main(arguments(config)) == REFUSED
        (line,) = capsys.readouterr().err.splitlines()
        assert not (tmp_path / "runs").exists()
        return line

    return refuse


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("crl: ant #1", "W&B allows no # : in a project's name; e.g. 'crl- ant -1'"),
        ("50%", "W&B allows no % in a project's name; e.g. '50-'"),
        ("why?", "W&B allows no ? in a project's name; e.g. 'why-'"),
        ("a/b", "cannot be part of a folder's name"),
    ],
)
def test_projects_that_wandb_refuses(refused, name, said):
    assert said in refused(project_name=name)


def test_a_project_that_only_wandb_refuses_is_trained_without_it():
    check_wandb(tiny(project_name="crl: ant #1"))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("WANDB_MODE", "ofline"),
        ("WANDB_RUN_ID", "a/b"),
        ("WANDB_INIT_TIMEOUT", "soon"),
        ("WANDB_RESUME", "perhaps"),
        ("WANDB_PROJECT", "a:b"),
        ("WANDB_SWEEP_PARAM_PATH", "nowhere.yaml"),
    ],
)
def test_variables_that_wandb_refuses(refused, variable, value):
    assert refused({variable: value}).startswith(f"error: {variable}={value!r}")


@pytest.mark.parametrize("key", ["no key", " 0 ", "0"])
def test_a_key_is_the_services_business(monkeypatch, key):
    monkeypatch.setenv("WANDB_API_KEY", key)
    check_wandb(tiny(log_wandb=True))


@pytest.fixture
def told(tmp_path):
    """told(settings) -> the variables by which the agent of a sweep says that W&B shows these settings."""

    def tell(settings):
        path = tmp_path / "config.yaml"
        entries = {name: {"value": value} for name, value in settings.items()}
        path.write_text("wandb_version: 1\n\n" + yaml.safe_dump(entries))
        return {"WANDB_SWEEP_ID": "abc", "WANDB_SWEEP_PARAM_PATH": str(path)}

    return tell


@pytest.mark.parametrize(
    ("shown", "trained", "said"),
    [
        ({"fresh_goals": False}, {}, "fresh_goals False but trained True"),
        ({"render": True}, {"render": False}, "render True but trained False"),
        ({"h_dim": 16, "seed": 0}, {"h_dim": 8}, "h_dim 16 but trained 8;"),
        ({"h_dim": 16, "energy_fn": "dot"}, {}, "h_dim 16 but trained 8, energy_fn dot but trained l2"),
        ({"backend": "mjx"}, {}, "backend mjx but trained None"),
    ],
)
def test_values_of_a_sweep_that_are_not_trained(refused, told, shown, trained, said):
    line = refused(told(shown), **trained)
    assert said in line and "${args}" in line


def test_values_of_a_sweep_that_are_trained_however_they_are_written(told, monkeypatch):
    shown = {
        "fresh_goals": "true",
        "render": 0,
        "policy_lr": "1e-4",
        "num_timesteps": 160.0,
        "backend": None,
        "mine": 3,
    }
    for name, value in told(shown | {"energy_fn": "l2", "use_ln": False, "h_dim": "8"}).items():
        monkeypatch.setenv(name, value)
    check_wandb(tiny(log_wandb=True, policy_lr=1e-4))
    check_wandb(tiny(use_ln=True))  # shows nothing


@pytest.mark.slow
def test_what_a_resumed_run_shows_is_what_it_trains_with(server, point_at, tmp_path):
    point_at(server)
    first = WandbLogger(tiny(), tmp_path)
    first.close()
    second = WandbLogger(tiny(num_timesteps=320), tmp_path, first.run_id)
    second.close()
    assert server.runs[first.run_id]["config"]["num_timesteps"]["value"] == 320


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # W&B leaves the sweep's file open
def test_nothing_is_logged_under_other_values(server, point_at, told, tmp_path, capsys):
    """Also where W&B learns of them in a way that nobody could check before: then training continues without it."""
    point_at(server, **told({"h_dim": 16}))
    logger = WandbLogger(tiny(h_dim=8), tmp_path)
    logger.log({"x": 1.0}, 0)
    logger.close()
    assert logger.run is None and not any(run["history"] for run in server.runs.values())
    assert "h_dim 16 but trained 8" in capsys.readouterr().err


def test_a_closed_pipe_does_not_end_a_logger(point_at, server, tmp_path, monkeypatch):
    point_at(server, WANDB_MODE="offline")
    logger = WandbLogger(tiny(), tmp_path)
    with contextlib.suppress(OSError), open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        closed = logger.close() is None
    assert closed and list((tmp_path / "wandb").glob("offline-run-*"))
