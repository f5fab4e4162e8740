"""Trunks, encoders and actor against NumPy forward passes, and what their parameters look like when fresh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from src.networks import NETWORKS, Actor, Encoder

STATE, GOAL, H_DIM = 5, 2, 16


def relu(x):
    return np.maximum(x, 0)


def swish(x):
    return x / (1 + np.exp(-x))


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


def layer_norm(params, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * params["scale"] + params["bias"]


def hidden_layer(params, number, x, activation):
    x = dense(params[f"Dense_{number}"], x)
    norm = f"LayerNorm_{number}"
    return activation(layer_norm(params[norm], x) if norm in params else x)


def numpy_mlp(params, x, n_hidden):
    for number in range(n_hidden):
        x = hidden_layer(params, number, x, relu)
    return x


def numpy_residual(params, x, n_hidden):
    x = hidden_layer(params, 0, x, swish)
    number = 1
    while number < n_hidden:
        skip, end = x, min(number + 2, n_hidden)
        for inner in range(number, end):
            x = hidden_layer(params, inner, x, swish)
        x, number = x + skip, end
    return x


NUMPY_TRUNKS = {"mlp": numpy_mlp, "residual": numpy_residual}


def jittered(params, seed=0):
    """Parameters with every leaf moved off its initial value, so that zero biases and unit scales take part."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.asarray(leaf) + 0.3 * random.standard_normal(leaf.shape), params)


def trunk(name, n_hidden, use_ln):
    return NETWORKS[name](h_dim=H_DIM, n_hidden=n_hidden, use_ln=use_ln)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("n_hidden", "use_ln"), [(1, False), (2, True), (4, True), (5, False)])
def test_trunks_match_numpy(name, n_hidden, use_ln):
    module = trunk(name, n_hidden, use_ln)
    x = np.random.default_rng(1).standard_normal((7, STATE))
    params = jittered(jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, STATE)))["params"])
    assert sum(key.startswith("Dense") for key in params) == n_hidden
    assert sum(key.startswith("LayerNorm") for key in params) == (n_hidden if use_ln else 0)
    outputs = jax.jit(module.apply)({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(outputs, NUMPY_TRUNKS[name](params, x, n_hidden), rtol=1e-4, atol=1e-5)


def test_a_residual_block_that_says_nothing_leaves_its_input():
    module = trunk("residual", 5, False)
    params = module.init(jax.random.key(0), jnp.zeros((1, STATE)))["params"]
    silent = {
        name: params[name] if name == "Dense_0" else jax.tree.map(jnp.zeros_like, params[name]) for name in params
    }
    x = jnp.ones((1, STATE))
    np.testing.assert_allclose(module.apply({"params": silent}, x), swish(dense(params["Dense_0"], x)), rtol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("use_ln", [False, True])
@pytest.mark.parametrize("n_hidden", [1, 3])
def test_parameter_counts(name, use_ln, n_hidden):
    """Fully connected layers, biases included, and two numbers a unit for LayerNorm."""
    hidden = (STATE + GOAL) * H_DIM + H_DIM + (n_hidden - 1) * (H_DIM * H_DIM + H_DIM)
    hidden += 2 * H_DIM * n_hidden if use_ln else 0
    inputs = (jnp.zeros((1, STATE)), jnp.zeros((1, GOAL)))
    for module, outputs in [
        (Encoder(trunk(name, n_hidden, use_ln), 6), 6),
        (Actor(trunk(name, n_hidden, use_ln), 3), 2 * 3),
    ]:
        shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        assert count == hidden + H_DIM * outputs + outputs


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("head", [Encoder, Actor])
def test_fresh_parameters(name, head):
    """Kernels fill U(-b, b) with b = sqrt(3 / inputs) (lecun_uniform); biases are 0; LayerNorm starts as itself."""
    module = head(trunk(name, 2, True), 6)
    params = jax.jit(module.init)(jax.random.key(1), jnp.zeros((1, STATE)), jnp.zeros((1, GOAL)))["params"]
    kernels = 0
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        kind = path[-1].key
        if kind == "kernel":
            kernels += 1
            bound = np.sqrt(3 / leaf.shape[0])
            assert 0.85 * bound < np.max(np.abs(leaf)) <= bound
            assert abs(np.mean(leaf)) < 0.25 * bound
            assert np.std(leaf) == pytest.approx(bound / np.sqrt(3), rel=0.2)
        else:
            np.testing.assert_array_equal(leaf, {"bias": 0, "scale": 1}[kind])
    assert kernels == 3


def test_the_actor_is_a_gaussian_with_a_spread_above_zero():
    module = Actor(trunk("mlp", 1, False), 3)
    inputs = (jnp.ones((4, STATE)), jnp.ones((4, GOAL)))
    params = module.init(jax.random.key(0), *inputs)
    head = np.asarray(params["params"]["Dense_0"]["kernel"])
    hidden = relu(dense(jax.tree.map(np.asarray, params["params"]["trunk"]["Dense_0"]), np.ones((4, STATE + GOAL))))
    mean, std = module.apply(params, *inputs)
    np.testing.assert_allclose(mean, hidden @ head[:, :3], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(std, np.log1p(np.exp(hidden @ head[:, 3:])) + 1e-3, rtol=1e-4)

    params["params"]["Dense_0"]["bias"] = jnp.full(6, -1e4)
    _, narrow = module.apply(params, *inputs)
    assert np.all(narrow > 0)


def test_the_encoder_sees_all_its_inputs():
    module = Encoder(trunk("mlp", 1, False), 4)
    state, action = jnp.ones((2, STATE)), jnp.ones((2, GOAL))
    params = module.init(jax.random.key(0), state, action)
    out = module.apply(params, state, action)
    assert out.shape == (2, 4)
    assert not np.allclose(out, module.apply(params, state, 2 * action))
    assert not np.allclose(out, module.apply(params, 2 * state, action))
    assert module.apply(params, jnp.ones((3, 2, STATE)), jnp.ones((3, 2, GOAL))).shape == (3, 2, 4)
