"""How far goals are along a corridor, from the command line to the record and the evaluation."""

import jax
import pytest
from conftest import tiny

import training
from src.algorithms import ALGORITHMS
from src.checkpoint import save_params
from src.policy import load_trained
from src.program import make_program
from utils import derive_schedule, read_config, write_record


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env_name=reacher", "--gen_distances=1"], "gen_distances '1' are for ant_u_maze_gen"),
        (["--env_name=ant_u4_maze_gen", "--gen_distances=1,11"], "11 is no way along the corridor of u4_maze: 1 to 10"),
        (["--env_name=ant_u_maze_gen", "--eval_gen_distances=7"], "7 is no way along the corridor of u_maze: 1 to 6"),
        (
            ["--env_name=ant_u_maze_gen", "--eval_env=ant_u_maze_eval", "--eval_gen_distances=2"],
            "ant_u_maze_eval has none",
        ),
    ],
)
def test_distances_that_an_env_does_not_have_are_refused(tmp_path, capsys, arguments, message):
    assert training.main([f"--output_dir={tmp_path}", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("env_name", ["ant_u_maze_gen", "arm_grasp"])
def test_no_goals_are_proposed_where_they_belong_to_a_start(tmp_path, capsys, env_name):
    arguments = [f"--output_dir={tmp_path}", f"--env_name={env_name}", "--goal_proposal=achieved"]
    assert training.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: --goal_proposal achieved: a goal of") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_training_and_evaluation_each_have_their_distances(tmp_path):
    """Recorded with the run; a policy can be judged by others."""
    config = tiny(env_name="ant_u4_maze_gen", gen_distances="1,3", eval_gen_distances="8,9,10")
    schedule = derive_schedule(config)
    write_record(tmp_path, config, schedule, [], [])
    assert read_config(tmp_path, ALGORITHMS) == config
    program = make_program(config, schedule)
    assert [each.env.distances.tolist() for each in (program.env, program.eval_env)] == [[1, 3], [8, 9, 10]]
    save_params(tmp_path / "params.npz", program.algorithm.init(jax.random.key(0)))
    for eval_env, given, expected in (
        (None, "", [8, 9, 10]),
        ("ant_u4_maze_gen", "", [8, 9, 10]),
        (None, "2", [2]),
        ("ant_u_maze_gen", "", [1, 2, 3, 4, 5, 6]),
        ("ant_u5_maze_gen", "16", [16]),
    ):
        judged, _ = load_trained(tmp_path, eval_env=eval_env, eval_gen_distances=given)
        assert judged.eval_env.env.distances.tolist() == expected
    judged, _ = load_trained(tmp_path, eval_env="ant_u4_maze_eval")
    assert len(judged.eval_env.env.goals) == 4
