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


def check_sweep(config: Config) -> None:
    """Refuses what a run that W&B's agent has started cannot log.

    Raises:
      ConfigError: several seeds, which are runs of their own, where the agent has reserved one run.
    """
    if config.log_wandb and config.num_seeds > 1 and "WANDB_SWEEP_ID" in os.environ:
        raise ConfigError(
            f"--num_seeds {config.num_seeds}: a run of a W&B sweep is one seed; sweep over `seed` instead"
        )


class WandbLogger:
    """Weights & Biases. Never asks for an account: without a key, or when the service is out of reach, it logs to the
    run folder, and `close` prints the command that uploads it. All waiting is bounded.

    Attributes:
      run_id: what a resumed run passes on, so that its curves continue.
      waited_in_vain: whether the upload of a run of this process has, which no other run waits for again.
    """

    waited_in_vain = False

    def __init__(self, config: Config, run_dir: Path, run_id: str | None = None):
        """Starts a run, or goes on with `run_id`; evaluations that it has logged already are not logged again."""
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
        self.run.define_metric("env_steps")
        self.run.define_metric("*", step_metric="env_steps")

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
        # After one in vain W&B's exit handler waits for all the others together; artifacts would ask the service again.
        in_time = self.working and not (online and WandbLogger.waited_in_vain)
        uploaded = in_time and all([survives("W&B", self._log_files), self._finish(online)])
        if not online or not uploaded:
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
        """A resumed run passes the env steps of its last evaluation; TensorBoard then hides later ones of before."""
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
