"""A policy that scripts/export.py wrote, in any project: copy this file, which needs NumPy alone, and the .npz.

policy = ExportedPolicy("policy.npz")
action = policy(obs)  # (..., state_dim + goal_dim) -> (..., action_size); a policy that plans H: (..., H, action_size)
"""

import numpy as np

ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * (0.5 + 0.5 * np.tanh(x / 2)),
    "tanh": np.tanh,
}


class ExportedPolicy:
    """The deterministic policy; `obs_size`, `action_size` and `plan_length` (1: single actions) are its sizes."""

    def __init__(self, path):
        with np.load(path, allow_pickle=False) as file:
            self.arrays = dict(file)
        self.obs_size = len(self.arrays["mean"])
        self.plan_length, self.action_size = self.arrays["plan_shape"].tolist()

    def __call__(self, obs):
        """What to do in (..., obs_size) observations: states and goals, one after the other."""
        arrays, obs = self.arrays, np.asarray(obs, np.float32)
        if obs.shape[-1:] != (self.obs_size,):
            raise ValueError(f"an observation has {self.obs_size} entries, got an array of shape {obs.shape}")
        inputs = [(obs - arrays["mean"]) / arrays["std"]]
        for number, (activation, skip) in enumerate(zip(arrays["activation"], arrays["skip"], strict=True)):
            x = inputs[-1] @ arrays[f"{number}/kernel"] + arrays[f"{number}/bias"]
            if f"{number}/scale" in arrays:
                x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
                x = x * arrays[f"{number}/scale"] + arrays[f"{number}/shift"]
            x = ACTIVATIONS[activation](x)
            inputs.append(x + inputs[-skip] if skip else x)
        size = (self.action_size,) if self.plan_length == 1 else (self.plan_length, self.action_size)
        return inputs[-1].reshape(*obs.shape[:-1], *size)
