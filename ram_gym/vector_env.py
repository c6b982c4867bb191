"""GlimpseVectorEnv: thousands of glimpse environments at once, in PyTorch, on CPU or GPU.

One class, longer than other files here: a third of it is its contract, and its methods share all of its state.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from ram_gym import rules, scenes
from ram_gym.arguments import (
    MAX_SEED,
    Checked,
    DeferredChecks,
    check_actions,
    check_device,
    check_integer,
    check_integers,
    check_keys,
    check_locations,
    check_mask,
    check_seeds,
    fresh_seed,
)
from ram_gym.config import GlimpseConfig
from ram_gym.env import RENDER_FPS, set_up
from ram_gym.rendering import render_frame
from ram_gym.retina import Retina

Output = Literal["numpy", "torch"]
FinalObs = Literal["dict", "objects"]

LANE_ATTRIBUTES = {
    "canvas": "canvases",
    "label": "labels",
    "digit_location": "digit_locations",
    "observation_space": "single_observation_space",
    "action_space": "single_action_space",
}
"""What one lane has under another name than the vector environment."""

MAX_LANES = 2**31
"""Lanes are fewer: more than any memory holds."""


class GlimpseVectorEnv(VectorEnv[dict[str, Any], dict[str, Any], Any]):
    """N glimpse environments that step together; every lane behaves, bit for bit, like a `GlimpseEnv`.

    ## Description
    See `GlimpseEnv`. Lane i, seeded with s, plays the episodes that a `GlimpseEnv` seeded with s + i plays. Lanes need
    not be in step with each other. Made by `gym.make_vec(id, num_envs=...)`.

    ## Observation
    Dict of `glimpse`, float32 (N, K * C, P, P) in [0, 1], and `location`, float32 (N, 2) in [-1, 1].

    ## Action
    Dict of `location`, float32 (N, 2), and `label`, integers (N,) or (N, 1) in [0, L). Arrays and tensors are
    both taken.

    ## Reward
    (N,), 1 where a lane's last step has the right label, else 0; float64 as array, float32 as tensor.

    ## Start
    `reset(seed=...)` takes an int or N ints. `reset(options=...)` takes `index` and `scene_seed` (an int or N ints),
    `location` (float (2,) or (N, 2)) and `reset_mask` (bool (N,): only these lanes begin anew).

    ## Termination
    As `GlimpseEnv`, and truncated after `max_episode_steps`, if given. What follows depends on `autoreset_mode`:
    NEXT_STEP begins the next episode at the next step, whose action it ignores; SAME_STEP begins it in the same step
    and hands the ended episode's last observation and info over as `final_obs` and `final_info`; DISABLED waits for
    `reset`.

    ## Info
    At steps that end episodes: `label`, `prediction`, `is_success`, `index`, `scene_seed`, each (N,) with a mask
    (`_label`, ...), zero where the mask is False; under SAME_STEP inside `final_info`, beside `final_obs`, with masks
    `_final_info` and `_final_obs`. Dense, and never shared with the environment's state. `final_obs` is a dict of
    batched arrays or tensors, like an observation; with final_obs="objects" it is what Gymnasium's SyncVectorEnv
    gives: an object array (N,) of one lane's dict each, None where the mask is False.

    ## Arguments
    num_envs: number N of lanes.
    config, dataset, and every field of `GlimpseConfig` by keyword: as `GlimpseEnv`.
    device: where the tensors live: "cpu", "cuda", ...
    output: "numpy" gives arrays; "torch" gives tensors on `device`, without leaving it.
    autoreset_mode: a gymnasium AutoresetMode, its name or its value ("NextStep", "SameStep", "Disabled").
    render_mode: None or "rgb_array"; `render` then gives a tuple of N frames.
    final_obs: "dict" or "objects": the form of `final_obs` under SAME_STEP. "objects" takes a Python loop over lanes.
    max_episode_steps: episodes are truncated after as many steps, as Gymnasium's TimeLimit does; None or -1: never.

    ## Attributes
    `config`, `num_images` (of the split), `num_classes`, `class_names` (a tuple, or None where classes have numbers
    only); of the running episodes, for drawing and for references: `canvases`, `labels`, `digit_locations`.

    ## Version history
    v0: first version.

    Raises:
        ValueError: as `GlimpseEnv`, and for a mask or a seed of the wrong shape; the state is then unchanged. Values
            that come on a GPU are not waited for: a NaN is taken as 0, a wrong label as a wrong answer, a wrong index
            or scene seed as 0, and a later `reset` or step that ends episodes raises, once the GPU has got there.
        gymnasium.error.ResetNeeded: from `step`, before the first reset, and under DISABLED for a lane that has ended.

    Example:
        >>> envs = GlimpseVectorEnv(num_envs=3, dataset="digits", output="torch")
        >>> observation, _ = envs.reset(seed=0)
        >>> tuple(observation["glimpse"].shape)
        (3, 1, 8, 8)
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": ["rgb_array"],
        "render_fps": RENDER_FPS,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        config: GlimpseConfig | None = None,
        *,
        dataset: Any = None,
        device: str | torch.device = "cpu",
        output: Output = "numpy",
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        final_obs: FinalObs = "dict",
        max_episode_steps: int | None = None,
        **overrides: Any,
    ) -> None:
        num_envs = check_integer("num_envs", num_envs, MAX_LANES, low=1)
        if output not in ("numpy", "torch"):
            raise ValueError(f"output must be 'numpy' or 'torch', got {output!r}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        if final_obs not in ("dict", "objects"):
            raise ValueError(f"final_obs must be 'dict' or 'objects', got {final_obs!r}")
        if max_episode_steps not in (None, -1):
            max_episode_steps = check_integer("max_episode_steps", max_episode_steps, 2**63, low=1)
        self.num_envs = num_envs
        self.final_obs = final_obs
        self.max_episode_steps = None if max_episode_steps == -1 else max_episode_steps
        self.device = check_device(device)
        self.output = output
        self.render_mode = render_mode
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}  # type: ignore[misc]
        self.config, data, single_observation_space, self.single_action_space = set_up(config, dataset, overrides)
        self.single_observation_space = single_observation_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.num_classes, self.class_names = data.num_classes, data.class_names
        self.num_images, self.num_channels = data.images.shape[:2]
        self._image_shape = data.images.shape
        self._retina = Retina(self.config, self.num_channels, self.device)
        self._images = self._retina.share(data.images)
        self._labels = torch.tensor(data.labels, device=self.device)
        # Known on the host, so that no step waits for the device: how far each lane's episode is.
        self._num_steps = np.zeros(num_envs, np.int64)
        self._is_over = np.ones(num_envs, bool)  # ended and not begun anew
        self._has_begun = False
        self._keys: Tensor | None = None  # int64 (N,), the lanes' seeds
        self._num_episodes = self._zeros(torch.int64)
        self._index, self._scene_seed, self._prediction = (self._zeros(torch.int64) for _ in range(3))
        self._location = self._zeros(torch.float32, 2)
        self._glimpse = self._zeros(torch.float32, *single_observation_space["glimpse"].shape or ())
        self._placement: scenes.Placement | None = None
        self._path = np.zeros((num_envs, self.config.num_glimpses, 2), np.float32)  # filled only if render_mode is set
        self._deferred = DeferredChecks(self.device)

    # ------------------------------------------------------------------------------------------ Gymnasium's interface

    # Under torch.inference_mode() too, the state stays made of plain tensors that later steps may write to.
    @torch.inference_mode(False)
    def reset(
        self, *, seed: int | Any | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begins episodes in all lanes, or in those of `options["reset_mask"]`. Observation as `step`, info empty."""
        options = {} if options is None else options
        check_keys("options", options, ("index", "scene_seed", "location", "reset_mask"), required=False)
        mask = check_mask("options['reset_mask']", options.get("reset_mask"), self.num_envs)
        checked_index = self._check_integers("index", options, self.num_images)
        checked_scene_seed = self._check_integers("scene_seed", options, 2**63)
        checked_location = None
        if options.get("location") is not None:
            name = "options['location']"
            checked_location = check_locations(name, options["location"], self.num_envs, self.device)
        seeds = check_seeds(seed, self.num_envs)
        if not self._has_begun and mask is not None and not mask.all():
            raise ValueError("options['reset_mask'] must be True everywhere at the first reset")
        index, scene_seed, location = map(self._deferred.take, (checked_index, checked_scene_seed, checked_location))
        self._deferred.report()
        is_open = [given is None for given in seed] if isinstance(seed, list | tuple) else []
        if any(is_open) and seeds is not None:
            drawn = torch.as_tensor(self.np_random.integers(MAX_SEED, size=self.num_envs))
            seeds = torch.where(torch.tensor(is_open), drawn, seeds)
        if seeds is not None or self._keys is None:
            if seeds is not None:
                super().reset(seed=int(seeds[0]))
            elif self._np_random is None:
                super().reset(seed=(first := fresh_seed()))
                seeds = first + torch.arange(self.num_envs)
            else:
                seeds = torch.as_tensor(self.np_random.integers(MAX_SEED, size=self.num_envs))
            keys = seeds.to(self.device)
            lanes = self._mask_tensor(mask)
            self._keys = keys if self._keys is None else torch.where(lanes, keys, self._keys)
            self._num_episodes = torch.where(lanes, 0, self._num_episodes)
        self._begin(mask, index, scene_seed, location)
        self._has_begun = True
        return self._observe(), {}

    @torch.inference_mode(False)
    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], Any, Any, Any, dict[str, Any]]:
        """Every lane looks, answers or (NEXT_STEP) begins its next episode. See the class for what comes back."""
        mode = self.autoreset_mode
        if not self._has_begun or (mode == AutoresetMode.DISABLED and np.count_nonzero(self._is_over)):
            lanes = np.flatnonzero(self._is_over)[:8].tolist() if self._has_begun else "all"
            raise gym.error.ResetNeeded(f"lanes {lanes} have no running episode: call reset() before step()")
        checked = check_actions(actions, self.num_classes, self.num_envs, self.device)
        location, label = map(self._deferred.take, checked)

        starting = self._is_over.copy()  # under NEXT_STEP, lanes that begin anew and ignore their action
        num_steps = self._num_steps + ~starting
        answering = ~starting & rules.is_answer(num_steps, self.config)
        num_starting, num_answering = np.count_nonzero(starting), np.count_nonzero(answering)
        num_looking = self.num_envs - num_starting - num_answering
        truncating = ~starting & (num_steps >= (self.max_episode_steps or self.config.num_glimpses + 1))
        ending = answering | truncating
        num_ending = np.count_nonzero(ending)
        if num_ending:
            self._deferred.report()
        self._num_steps, self._is_over = num_steps, ending.copy()

        terminated = is_success = self._mask_tensor(answering)
        info: dict[str, Any] = {}
        if num_answering:
            self._prediction = torch.where(terminated, label, self._prediction)
            answer = self.labels
            is_success = terminated & (label == answer)
            info = self._final_info(terminated, answer, is_success)
        reward = rules.reward(is_success)
        if num_looking == self.num_envs:
            self._location = location
        elif num_looking:
            looking = self._mask_tensor(~(answering | starting))
            self._location = torch.where(looking[:, None], location, self._location)
        if mode == AutoresetMode.SAME_STEP and num_ending:
            if num_ending > num_answering:  # a truncated lane has looked
                self._look()
            info = {
                # Not copied: no other observation was these tensors, and below each is replaced, not written to.
                "final_obs": self._final_obs(ending),
                "_final_obs": self._convert(self._mask_tensor(ending)),
                "final_info": info,
                "_final_info": self._convert(self._mask_tensor(ending)),
            }
            starting, num_starting = ending, num_ending
        if num_starting:
            self._begin(starting, None, None, None)
        elif num_looking:
            self._look()
        truncated = self._mask_tensor(truncating)
        reward_out = reward if self.output == "torch" else reward.cpu().numpy().astype(np.float64)
        return self._observe(), reward_out, self._convert(terminated), self._convert(truncated), info

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One frame a lane, as `GlimpseEnv.render`; None where `render_mode` is None."""
        if self.render_mode is None:
            gym.logger.warn("render() needs render_mode: gym.make_vec(..., render_mode='rgb_array')")
            return None
        canvases, labels = self.canvases.cpu().numpy(), self.labels.tolist()
        glimpses, predictions = self._glimpse.cpu().numpy(), self._prediction.tolist()
        frames = []
        for lane in range(self.num_envs):
            path = self._path[lane, : int(self._num_steps[lane]) + 1]
            prediction = predictions[lane] if rules.is_answer(self._num_steps[lane], self.config) else None
            picture = canvases[lane], path, glimpses[lane], self.config
            frames.append(render_frame(*picture, prediction, labels[lane], self.class_names))
        return tuple(frames)

    def call(self, name: str) -> tuple[Any, ...] | None:
        """One value a lane of an attribute that `GlimpseEnv` has, or one frame a lane for "render".

        As Gymnasium's SyncVectorEnv gives them, for libraries that ask so.

        Raises:
            AttributeError: there is no such attribute.
            ValueError: it is another method; those of all lanes at once are this environment's own.
        """
        if name == "render":
            return self.render()
        value = getattr(self, LANE_ATTRIBUTES.get(name, name))
        if callable(value) and not isinstance(value, gym.Space):
            raise ValueError(f"name must be that of an attribute or 'render', got the method {name!r}")
        if not isinstance(value, Tensor):
            return (value,) * self.num_envs
        values = value.cpu().numpy().copy()
        return tuple(values.tolist() if values.ndim == 1 else values)

    def get_attr(self, name: str) -> tuple[Any, ...] | None:
        """The same as `call`."""
        return self.call(name)

    # ------------------------------------------------------------------- what is hidden: for drawing and for references

    @property
    def canvases(self) -> Tensor:
        """The hidden scenes, uint8 (N, C, S, S). No observation shows them."""
        self._require_episode()
        return self._retina.canvases

    @property
    def num_steps(self) -> np.ndarray:
        """How many steps each lane's episode has had, int64 (N,), on the host."""
        return self._num_steps.copy()

    @property
    def is_over(self) -> np.ndarray:
        """Which lanes' episodes have ended and wait for the next one to begin, bool (N,), on the host."""
        return self._is_over.copy()

    @property
    def labels(self) -> Tensor:
        """The hidden scenes' right labels, int64 (N,)."""
        self._require_episode()
        return self._labels.index_select(0, self._index)

    @property
    def digit_locations(self) -> Tensor:
        """The hidden locations of the images' centres on the canvas, float32 (N, 2)."""
        self._require_episode()
        assert self._placement is not None
        return scenes.digit_locations(self._placement, self._image_shape, self.config)

    # ---------------------------------------------------------------------------------------------------- the episodes

    def _begin(
        self, mask: np.ndarray | None, index: Tensor | None, scene_seed: Tensor | None, location: Tensor | None
    ) -> None:
        """Begins episodes in the lanes of a mask (None: all) and looks; None arguments are drawn."""
        assert self._keys is not None
        is_partial = mask is not None and not mask.all()
        lanes = self._to_device(np.flatnonzero(mask)) if is_partial and mask is not None else slice(None)
        keys, episodes = self._keys[lanes], self._num_episodes[lanes]
        fixed = self.config.fixed_scene_seed
        if index is None or (scene_seed is None and fixed is None):
            drawn_index, drawn_seed = scenes.episode_scenes(keys, episodes, self.num_images)
        new_index = drawn_index if index is None else index[lanes]
        if scene_seed is not None:
            new_seed = scene_seed[lanes]
        else:
            new_seed = drawn_seed if fixed is None else torch.full_like(new_index, fixed)
        scene = scenes.scene_keys(new_index, new_seed, self.config.split)
        placement = scenes.place(new_index, scene, self._image_shape, self.config)
        new_location = scenes.first_locations(scene) if location is None else location[lanes]
        if isinstance(lanes, slice):
            self._retina.show(self._images, new_index, placement)
            self._placement = placement
            self._index, self._scene_seed, self._location = new_index, new_seed, new_location
            self._num_episodes += 1
        else:
            assert self._placement is not None
            for old, new in zip(self._placement, placement, strict=True):
                old.index_copy_(0, lanes, new)
            self._retina.show(self._images, new_index, placement, lanes)
            # New tensors, since the old ones may have been handed out.
            self._index = self._index.index_copy(0, lanes, new_index)
            self._scene_seed = self._scene_seed.index_copy(0, lanes, new_seed)
            self._location = self._location.index_copy(0, lanes, new_location)
            self._num_episodes[lanes] += 1
        host_lanes = slice(None) if mask is None else mask
        self._num_steps[host_lanes] = 0
        self._is_over[host_lanes] = False
        self._look()

    def _look(self) -> None:
        """Takes every lane's glimpse at its location; a lane that did not move sees the same bits again."""
        self._glimpse = self._retina.look(self._location)
        if self.render_mode is not None:
            lanes = np.flatnonzero(self._num_steps < self.config.num_glimpses)  # the others have answered
            self._path[lanes, self._num_steps[lanes]] = self._location.cpu().numpy()[lanes]

    def _observe(self) -> dict[str, Any]:
        # Handed over uncopied, unless it is read again: by the next step, where a lane answers then, or by `render`.
        is_kept = self.render_mode is not None or np.count_nonzero(rules.is_answer(self._num_steps + 1, self.config))
        glimpse = self._glimpse.clone() if is_kept else self._glimpse
        return self._convert({"glimpse": glimpse, "location": self._location.clone()})

    def _final_obs(self, ending: np.ndarray) -> Any:
        """The observation as it is, in the form that `final_obs` asks for."""
        observation = self._convert({"glimpse": self._glimpse, "location": self._location})
        if self.final_obs == "dict":
            return observation
        lanes = np.full(self.num_envs, None, object)
        for lane in np.flatnonzero(ending):
            lanes[lane] = {key: value[lane] for key, value in observation.items()}
        return lanes

    def _final_info(self, terminated: Tensor, answer: Tensor, is_success: Tensor) -> dict[str, Any]:
        values = {
            "label": torch.where(terminated, answer, 0),
            "prediction": torch.where(terminated, self._prediction, 0),
            "is_success": is_success,
            "index": torch.where(terminated, self._index, 0),
            "scene_seed": torch.where(terminated, self._scene_seed, 0),
        }
        info = {}
        masks = self._convert(torch.stack([terminated] * len(values)))
        for (key, value), mask in zip(values.items(), masks, strict=True):
            info[key], info[f"_{key}"] = self._convert(value), mask
        return info

    # --------------------------------------------------------------------------------------------------- small helpers

    def _zeros(self, dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.zeros((self.num_envs, *shape), dtype=dtype, device=self.device)

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array).to(self.device, non_blocking=True)

    def _mask_tensor(self, mask: np.ndarray | None) -> Tensor:
        """A host mask (N,) on the device; nothing is sent where all lanes agree."""
        num = self.num_envs if mask is None else int(np.count_nonzero(mask))
        if mask is None or num in (0, self.num_envs):
            return torch.full((self.num_envs,), num > 0, dtype=torch.bool, device=self.device)
        return self._to_device(mask.copy())

    def _convert(self, value: Any) -> Any:
        """Tensors, or dicts of them, in the form that `output` asks for."""
        if isinstance(value, dict):
            return {key: self._convert(entry) for key, entry in value.items()}
        return value if self.output == "torch" else value.cpu().numpy()

    def _require_episode(self) -> None:
        if not self._has_begun:
            raise gym.error.ResetNeeded("no episode has begun: call reset() first")

    def _check_integers(self, key: str, options: dict[str, Any], bound: int) -> Checked | None:
        """An option, int64 (N,) on the device; 0 where it is bad."""
        if options.get(key) is None:
            return None
        return check_integers(f"options['{key}']", options[key], bound, self.num_envs, self.device).or_zero()


def _autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    for known in AutoresetMode:
        if mode in (known, known.value, known.name):
            return known
    names = ", ".join(repr(known.value) for known in AutoresetMode)
    raise ValueError(f"autoreset_mode must be an AutoresetMode or one of {names}, got {mode!r}")
