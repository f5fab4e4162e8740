"""A run on the probe env that is long enough for what bootstraps, and what it learns."""

from conftest import make_probe_program, tiny_of

from src import loop
from utils import Config


def learner(config_class: type[Config], **changes) -> Config:
    """Flags with which rewards reach back over an episode of the probe within a second of training."""
    sizes = {"num_envs": 32, "episode_length": 25, "unroll_length": 25, "batch_size": 64, "h_dim": 32}
    replay = {"min_replay_size": 50, "max_replay_size": 1000, "multiplier_num_sgd_steps": 4}
    length = {"num_timesteps": 100_000, "num_evals": 2, "num_eval_envs": 64}
    rates = {"discounting": 0.95, "policy_lr": 1e-3, "critic_lr": 1e-3, "tau": 0.02}
    return tiny_of(config_class, **sizes, **replay, **length, **rates, **changes)


def success_rates(config: Config) -> list[float]:
    """The share of episodes that reach their goal, before and after training."""
    moments = loop.run(make_probe_program(config), (0,), announce=lambda text: None)
    return [moment.metrics[0]["eval/episode_success_any"] for moment in moments if moment.metrics]
