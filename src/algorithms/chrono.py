"""Chrono: survival RL whose representations keep time, and whose critic also knows how long the agent stays.

Beside the hazards of src/algorithms/srl.py: the distance of phi(s, a) and psi(g) is the time to the goal (time), goals
that are apart or were missed are far (separation), and the time ahead is told by how much of it is spent near the goal
(occupancy). Where trajectories end by death, the actor also maximises that. Paper: https://arxiv.org/abs/2609.36238.
"""

import dataclasses
import math
from typing import Annotated, Any

import jax

from envs.base import GoalEnv, Sizes
from src import hazards
from src.algorithm import Algorithm
from src.algorithms import srl
from src.algorithms.srl import Forecast, Networks, SRLConfig
from src.first_hits import Batch
from src.losses import l2, pairwise_energy
from utils import Choice, Range


@dataclasses.dataclass(frozen=True)
class ChronoConfig(SRLConfig):
    """Trains a goal-reaching agent with chrono: a critic calibrated in time."""

    algorithm: Annotated[str, Choice("algorithm")] = "chrono"
    discounting: Annotated[float, Range(0, 1, open=True, example=0.99)] = 0.99
    action_chunk: Annotated[int, Range(1)] = 2
    distance_coef: Annotated[float, Range(0)] = 0.0
    """Weight, in what the actor maximises, of minus the steps to the goal by the distance of the representations: it
    keeps growing beyond what was ever reached, where the hazards know nothing."""


def make(config: ChronoConfig, env: GoalEnv) -> Algorithm:
    """Chrono bound to one config and env."""
    terms = srl.Terms(critic_loss, value)
    return srl.make(config, env, terms, hazards.occupancy_bins(config.window()))


def pace(config: ChronoConfig) -> float:
    """The distance that a step takes."""
    return -math.log(config.time_discounting)


def critic_loss(
    config: ChronoConfig, networks: Networks, batch: Batch, forecast: Forecast
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The losses of likelihood, time, separation and occupancy, and what to report."""
    survival, metrics = srl.critic_loss(config, networks, batch, forecast)
    time = hazards.time_loss(-l2(forecast.phi, forecast.psi), batch.first_hit, pace(config))
    goal, reach = batch.goal[:, 0], networks.outlook.window * pace(config)
    apart = networks.env.goal_norm(goal[:, None] - goal[None, :]) > networks.env.goal_dist
    missed = (batch.first_hit < 0) & (batch.known >= 0)
    distances = -pairwise_energy("l2", forecast.phi, forecast.first_psi)
    separation = hazards.separation_loss(distances, apart, missed, reach)
    occupancy = hazards.occupancy_loss(forecast.occupancy, batch.occupancy)
    metrics |= {"time_loss": time, "separation_loss": separation, "occupancy_loss": occupancy}
    return survival + time + separation + occupancy, metrics


def value(
    config: ChronoConfig,
    networks: Networks,
    params: Any,
    phi: jax.Array,
    psi: jax.Array,
    deaths: jax.Array | float = 0.0,
) -> jax.Array:
    """(...) minus the discounted time until the goal is reached, plus, by the share of deaths, the discounted time near
    it: agents that survive weigh arrival only."""
    of_hazards, of_occupancy = srl.logits(networks, params, phi, psi)
    arrival = hazards.arrival_value(networks.bins, of_hazards, config.time_discounting)
    stay = hazards.occupancy_value(networks.outlook.occupancy_bins, of_occupancy, config.time_discounting)
    total = arrival + deaths * stay
    if config.distance_coef:
        total += config.distance_coef * l2(phi, psi) / pace(config)
    return total


def workspace(config: ChronoConfig, sizes: Sizes) -> float:
    """Floats that one update needs beyond parameters and rows: those of SRL, a table of (B, B), representations."""
    return srl.workspace(config, sizes) + config.batch_size * (config.batch_size + 6 * config.repr_dim)
