"""Where metrics go besides metrics.csv: Weights & Biases and TensorBoard, each imported by its own logger alone."""

import contextlib
import dataclasses
import os
import secrets
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.checkpoint import BEST_PARAMS_FILE, PARAMS_FILE
from src.output import survives
from utils import Config, ConfigError

if TYPE_CHECKING:
    import wandb

# How long W&B may take, and how much it says; its environment variables (WANDB_INIT_TIMEOUT, ...) go first.
_WANDB_SETTINGS = {"silent": True, "init_timeout": 30.0, "finish_timeout": 60.0, "finish_timeout_raises": True}

_NOT_IN_A_PROJECT = "/\\#?%:"  # what W&B's client refuses in a project's name


def check_wandb(config: Config) -> None:
    """Refuses, before anything is trained, what Weights & Biases would refuse or show wrongly.

    Raises:
      ConfigError: a project name or variable that W&B refuses; several seeds, which are runs of their own, where a
        sweep's agent has reserved one run; a value of the sweep that is not the one to be trained with.
    """
    if not config.log_wandb:
        return
    if config.num_seeds > 1 and "WANDB_SWEEP_ID" in os.environ:
        raise ConfigError(
            f"--num_seeds {config.num_seeds}: a run of a W&B sweep is one seed; sweep over `seed` instead"
        )
    wrong = [sign for sign in _NOT_IN_A_PROJECT if sign in config.project_name]
    if wrong:
        fits = "".join("-" if sign in _NOT_IN_A_PROJECT else sign for sign in config.project_name)
        raise ConfigError(
            f"--project_name {config.project_name!r}: W&B allows no {' '.join(wrong)} in a project's name; "
            f"e.g. {fits!r}"
        )
    _check_variables()
    different = _differences(_sweep_values(), config)
    if different:
        raise ConfigError(
            f"W&B would show other values than are trained with: {different}; hand the sweep's values on by ${{args}} "
            f"in its command section (${{args_no_boolean_flags}} leaves out what is false)"
        )


def _check_variables() -> None:
    """Raises ConfigError if one of W&B's variables has a value that its client refuses; the key is the service's."""
    import wandb

    for name, value in os.environ.items():
        if name.startswith("WANDB_") and name != "WANDB_API_KEY":
            try:
                wandb.Settings().update_from_env_vars({name: value})
            except Exception as error:  # of the client or of its validation
                reasons = error.errors()[0]["msg"] if hasattr(error, "errors") else error
                raise ConfigError(f"{name}={value!r}: W&B refuses it: {reasons}; unset it or mend it") from None


def _sweep_values() -> dict[str, Any]:
    """What the agent of a sweep has told W&B that this run is trained with; W&B shows it whatever is trained.

    Raises:
      ConfigError: the agent's file cannot be read.
    """
    path = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    if not path:
        return {}
    import yaml

    try:
        entries = yaml.safe_load(Path(path).read_bytes())
        return {name: entry["value"] for name, entry in entries.items() if isinstance(entry, dict)}
    except Exception as error:  # what PyYAML raises for a text that is no YAML is of any kind
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"WANDB_SWEEP_PARAM_PATH={path!r} cannot be read ({reason})") from None


def _differences(shown: dict[str, Any], config: Config) -> str:
    """The flags that W&B shows with another value than they have, with both values; empty if there are none."""
    trained = dataclasses.asdict(config)
    return ", ".join(
        f"{name} {shown[name]} but trained {value}"
        for name, value in trained.items()
        if name in shown and not _same(shown[name], value)
    )


def _same(shown: Any, trained: Any) -> bool:
    """Whether two values are one flag's, however they are written: 1e-4 or "1e-4", True or "true" or 1."""
    if isinstance(trained, bool):
        return str(shown).lower() in (str(trained).lower(), str(int(trained)))
    if isinstance(trained, int | float):
        with contextlib.suppress(TypeError, ValueError):
            return float(shown) == float(trained)
    return str(shown) == str(trained)


class WandbLogger:
    """Weights & Biases. Never asks for an account: without a key, or when the service is out of reach, it logs to the
    run folder, and `close` prints the command that uploads it. All waiting is bounded.

    Attributes:
      run_id: what a resumed run passes on, so that its curves continue.
      waited_in_vain: True once an upload timed out: later runs of this process do not wait.
    """

    waited_in_vain = False

    def __init__(self, config: Config, run_dir: Path, run_id: str | None = None):
        """Starts a run, or continues `run_id`; evaluations that it has logged already are not logged again."""
        self.config, self.run_dir, self.run, self.working = config, run_dir, None, True
        self.run_id = run_id or secrets.token_hex(4)
        self.mark = run_dir / "wandb" / "env_steps"  # of the last evaluation logged
        self.logged = -1
        with contextlib.suppress(OSError, ValueError):
            self.logged = int(self.mark.read_text()) if run_id else -1
        if not survives("W&B", self._start):
            survives("W&B offline", self._start_offline)

    def _start_offline(self) -> None:
        import wandb

        # W&B's service refuses the id that it failed to start, and its end would be that of the other seeds' runs.
        others = wandb.setup().most_recent_active_run is not None
        if not others:
            wandb.teardown()
        _wandb_settings(offline=True)  # for the seeds to come as well
        self._start(secrets.token_hex(4) if others else None)

    def _start(self, local_id: str | None = None) -> None:
        """Starts the run; under a `local_id` of its own it becomes `run_id` by the command that uploads it."""
        import wandb

        mode = _wandb_settings(self.config.wandb_mode == "offline").mode
        if mode in ("online", "run", "shared") and not wandb.login(prompt=False):
            mode = "offline"
        self.run = wandb.init(
            project=self.config.project_name,
            group=self.config.group_name,
            name=self.run_dir.name,
            config=dataclasses.asdict(self.config),
            dir=str(self.run_dir.resolve()),  # its service may have another working directory
            id=local_id or self.run_id,
            resume="allow",
            mode=mode,
            reinit="create_new",  # seeds trained together are runs of their own
        )
        self.run_id = self.run_id if local_id else self.run.id  # a sweep's agent has chosen it
        self.folder = self.run_dir / "wandb" / Path(self.run.dir).parent.name
        self._show_what_is_trained()
        self.run.define_metric("env_steps")
        self.run.define_metric("*", step_metric="env_steps")

    def _show_what_is_trained(self) -> None:
        """Mends what W&B shows of an earlier session or of a file of its own.

        Raises:
          ConfigError: W&B keeps to another value, so nothing must be logged under it.
        """
        if _differences(dict(self.run.config), self.config):
            self.run.config.update(dataclasses.asdict(self.config), allow_val_change=True)
        if different := _differences(dict(self.run.config), self.config):
            run, self.run = self.run, None
            run.finish(exit_code=1)
            raise ConfigError(f"it would show other values than are trained with: {different}")

    def log(self, metrics: dict[str, float], step: int) -> None:
        if self.run and self.working and step > self.logged:
            self.working = survives("W&B", lambda: self._log(metrics, step))

    def _log(self, metrics: dict[str, float], step: int) -> None:
        self.run.log({"env_steps": step, **metrics}, step=step)
        self.logged = step
        self.mark.parent.mkdir(parents=True, exist_ok=True)
        self.mark.write_text(str(step))

    def close(self) -> None:
        """Logs the run's parameters, videos and pictures, waits for the upload, or says how to upload later."""
        if self.run is None:
            return
        online = not self.run.offline
        # After an upload that timed out this run does not wait: W&B's exit handler waits for all runs together at the
        # end of the process. Its artifacts are left out too, as they would ask the service again.
        in_time = self.working and not (online and WandbLogger.waited_in_vain)
        uploaded = in_time and all([survives("W&B", self._log_files), self._finish(online)])
        if not online or not uploaded:
            with contextlib.suppress(OSError, ValueError):  # a terminal or pipe that is gone
                print(f"W&B: upload this run with  {shlex.join(self._sync_command(online))}", flush=True)

    def _finish(self, online: bool) -> bool:
        """Waits for the upload, and whether it is done."""
        finished = survives("W&B", self.run.finish)
        if online and not finished:
            WandbLogger.waited_in_vain = True
            _wandb_settings(offline=True)
        return finished

    def _log_files(self) -> None:
        import wandb

        artifact = wandb.Artifact(f"params-{self.run_id}", type="model")
        for path in (self.run_dir / name for name in (PARAMS_FILE, BEST_PARAMS_FILE, "config.json")):
            if path.exists():
                artifact.add_file(str(path))
        self.run.log_artifact(artifact)
        media: dict[str, Any] = {
            f"videos/{path.stem}": wandb.Video(str(path), format="mp4")
            for path in sorted((self.run_dir / "videos").glob("*.mp4"))
        }
        media |= {f"pictures/{path.stem}": wandb.Image(str(path)) for path in sorted(self.run_dir.glob("*.png"))}
        if media:
            self.run.log({"env_steps": self.logged, **media}, step=max(self.logged, 0))

    def _sync_command(self, online: bool) -> list[str]:
        """Uploads what is not uploaded yet: this session of the run, and earlier ones that were offline."""
        earlier = [
            path
            for path in self.folder.parent.glob("offline-run-*")
            if path != self.folder and not list(path.glob("*.synced"))
        ]
        folders = [*sorted(earlier), self.folder]
        renamed = any(not path.name.endswith(f"-{self.run_id}") for path in folders)
        options = [*(["--include-online"] if online else []), *(["--id", self.run_id] if renamed else [])]
        return ["wandb", "sync", *options, *map(str, folders)]


def _wandb_settings(offline: bool = False) -> "wandb.Settings":
    """W&B's settings in this process; once `offline`, it stays so for runs to come."""
    import wandb

    os.environ.pop("WANDB_SERVICE", None)  # that of a parent process, which ends when the parent likes
    ours = {name: value for name, value in _WANDB_SETTINGS.items() if f"WANDB_{name.upper()}" not in os.environ}
    return wandb.setup(wandb.Settings(**ours, **({"mode": "offline"} if offline else {}))).settings


class TensorBoardLogger:
    """TensorBoard's event files in RUN_DIR/tensorboard, written at once, without a thread or a queue that could block.

    What could not be written is written, to a new file, at the next chance.
    """

    def __init__(self, run_dir: Path, last_env_step: int | None = None):
        """A resumed run passes the env steps of its last evaluation; TensorBoard then hides what the earlier session
        logged after that step."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self.folder, self.writer = run_dir / "tensorboard", None
        self.unwritten: list[Event] = []
        if last_env_step is not None:
            start = SessionLog(status=SessionLog.START)
            self.unwritten.append(Event(wall_time=time.time(), step=last_env_step + 1, session_log=start))

    def log(self, metrics: dict[str, float], step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self.unwritten.append(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self._flush()

    def _flush(self) -> None:
        if self.unwritten and not survives("TensorBoard", self._write):
            self.writer = None  # its file may end in half an event

    def _write(self) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        if self.writer is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.writer = EventsWriter(str(self.folder / "events"), f".{os.getpid()}.{secrets.token_hex(4)}")
        for event in self.unwritten:
            self.writer.write_event(event)
        self.writer.flush()
        self.unwritten.clear()

    def close(self) -> None:
        self._flush()
        if self.writer:
            survives("TensorBoard", self.writer.close)
