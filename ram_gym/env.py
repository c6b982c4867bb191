"""GlimpseEnv: one episode at a time, in NumPy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from ram_gym import rules, scenes
from ram_gym.arguments import MAX_SEED, check_integer, check_keys, check_location, fresh_seed
from ram_gym.config import CUSTOM_DATASET, GlimpseConfig
from ram_gym.datasets import Dataset, DatasetError, default_data_root, load_dataset
from ram_gym.rendering import render_frame
from ram_gym.retina import Retina

RENDER_FPS = 2


class Setup(NamedTuple):
    """What the single and the vector environment are both built from."""

    config: GlimpseConfig
    data: Dataset
    observation_space: spaces.Dict
    action_space: spaces.Dict


def set_up(config: GlimpseConfig | None, dataset: Any, overrides: dict[str, Any]) -> Setup:
    """Validates the arguments of an environment, loads its images and makes its spaces.

    Raises:
        TypeError: an override is no field of GlimpseConfig, or has the wrong type.
        ValueError: a field is out of range, or the images do not fit the canvas or the clutter.
        DatasetError: see `load_dataset`.
    """
    if config is not None and not isinstance(config, GlimpseConfig):
        raise TypeError(f"config must be a GlimpseConfig, such as get_task(name).config, got {config!r}")
    if isinstance(dataset, str | os.PathLike):
        overrides = {**overrides, "dataset": os.fspath(dataset)}
        dataset = None
    elif dataset is not None:
        overrides = {**overrides, "dataset": CUSTOM_DATASET}
    config = (config or GlimpseConfig()).replace(**overrides)
    if dataset is None and config.dataset == CUSTOM_DATASET:
        raise DatasetError("dataset 'custom' has no files: pass the images as dataset=(images, labels)")
    if config.data_path is not None:
        config = config.replace(dataset=str(config.data_path))  # which means the same wherever a copy is made
    data = load_dataset(config) if dataset is None else load_dataset(dataset, config.split, None, config.image_size)
    num_images, channels, height, width = data.images.shape
    if max(height, width) > config.canvas_size:
        raise ValueError(
            f"canvas_size must hold images of {height}x{width} pixels, got {config.canvas_size}: choose a larger "
            "canvas, or resize the images by image_size"
        )
    if config.num_clutter and config.clutter_size > min(height, width):
        raise ValueError(f"clutter_size must fit in images of {height}x{width} pixels, got {config.clutter_size}")
    if config.num_clutter and num_images < 2:
        raise ValueError("num_clutter needs a second image to cut clutter from; the split has one image")
    if config.num_clutter and scenes.fill_canvas(data.images.shape, config):
        gym.logger.warn(
            f"the images fill the canvas of {height}x{width} pixels, and num_clutter={config.num_clutter} adds clutter "
            "to them: set num_clutter=0 if they are scenes with clutter already"
        )
    patch = (config.num_scales * channels, config.patch_size, config.patch_size)
    location = spaces.Box(-1.0, 1.0, (2,), np.float32)
    observation_space = spaces.Dict({"glimpse": spaces.Box(0.0, 1.0, patch, np.float32), "location": location})
    action_space = spaces.Dict({"location": location, "label": spaces.Discrete(data.num_classes)})
    return Setup(config, data, observation_space, action_space)


class GlimpseEnv(gym.Env[dict[str, np.ndarray], dict[str, Any]]):
    """An image classification game in which the image is hidden and every look costs a step.

    ## Description
    A scene (an image on a larger canvas, with clutter) is hidden. The agent chooses where to look, gets a small
    foveated glimpse, and after `num_glimpses` glimpses says what the image shows.
    Source: Mnih et al. 2014, sections 2 and 3, as a Gymnasium environment.

    ## Observation
    Dict of `glimpse`, float32 (K * C, P, P) in [0, 1]: K patches of C channels around one location, the finest first,
    each `scale_factor` times as wide as the one before and average-pooled to P x P; and of `location`, float32 (2,)
    in [-1, 1]: where that glimpse was taken, x to the right and y down, (-1, -1) the top-left corner.

    ## Action
    Dict of `location`, float32 (2,): where to look next, clipped to [-1, 1]; and of `label`, an int in [0, L): the
    answer, which counts at the last step only.

    ## Reward
    1 at the last step if the label is right, else 0.

    ## Start
    The first glimpse is taken at a uniformly random location. `reset(options=...)` takes `index` (which image of the
    split), `scene_seed` (its placement and clutter) and `location` (float (2,), the first one). Without options they
    follow from the seed: episode e of seed s is the same in the single and the vector environment. Images are then
    drawn with replacement; to play each once, give `index`. With a fixed scene seed the first location is fixed too.

    ## Termination
    Steps 1 to T - 1 look; step T answers and ends the episode (`terminated`). Its location is ignored and it shows the
    last glimpse again. Never truncated.

    ## Info
    Empty, but for the terminal step: `label` (the right one), `prediction` (the one given), `is_success`, `index` and
    `scene_seed` (which, as reset options, give the same scene again).

    ## Arguments
    Every field of `GlimpseConfig` by keyword, and `render_mode` (None or "rgb_array"). `dataset` is a name, the
    path of a folder or an .npz file, a pair (images, labels), a map-style dataset, or a mapping from splits to these:
    see `load_dataset`. `config` gives all
    fields at once; keywords win over it, also those that come with a registered id.

    ## Attributes
    `config`, `num_images` (of the split), `num_classes`, `class_names` (a tuple, or None where classes have numbers
    only); of the running episode, for drawing and for references: `canvas`, `label`, `digit_location`.

    ## Version history
    v0: first version.

    Raises:
        TypeError, ValueError: when made, for unknown fields, fields out of range (see `GlimpseConfig`) and images that
            do not fit the canvas; `DatasetError`, a ValueError, for data that is unknown, missing or damaged.
        ValueError: from `step` and `reset`, for NaN or infinite locations, wrong shapes, labels out of range, unknown
            keys, seeds outside [0, 2^62), an `index` outside [0, num_images) and a `scene_seed` outside [0, 2^63). The
            environment's state is then unchanged.
        gymnasium.error.ResetNeeded: from `step`, before the first reset and after the last step.

    Example:
        >>> env = GlimpseEnv(dataset="digits")
        >>> observation, info = env.reset(seed=0, options={"location": (0.0, 0.0)})
        >>> observation["glimpse"].shape, observation["location"].tolist()
        ((1, 8, 8), [0.0, 0.0])
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": RENDER_FPS}  # type: ignore[misc]

    def __init__(
        self,
        config: GlimpseConfig | None = None,
        *,
        dataset: Any = None,
        render_mode: str | None = None,
        **overrides: Any,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        self.render_mode = render_mode
        setup = set_up(config, dataset, overrides)
        self.config, self._data = setup.config, setup.data
        self.num_images, self.num_classes = len(setup.data.images), setup.data.num_classes
        self.class_names = setup.data.class_names
        # Where the images came from, so that a copy in another process finds them whatever its environment says.
        self._data_root = str(Path(self.config.data_root or default_data_root()).expanduser().absolute())
        self.observation_space, self.action_space = setup.observation_space, setup.action_space  # type: ignore[assignment]
        self._key: int | None = None  # the seed
        self._num_episodes = 0  # begun since seeded
        self._num_steps: int | None = None  # taken in this episode; None where none is running
        self._index = self._scene_seed = 0
        self._placement: scenes.Placement | None = None
        self._retina = Retina(self.config, setup.data.images.shape[1])
        self._path: list[np.ndarray] = []  # locations looked at, float32 (2,) each
        self._prediction: int | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begins an episode. See the class for the options; the observation is the first glimpse, the info empty."""
        index, scene_seed, location = self._check_options({} if options is None else options)
        if seed is not None:
            seed = check_integer("seed", seed, MAX_SEED)
        elif self._key is None and self._np_random is None:
            seed = fresh_seed()
        super().reset(seed=seed)
        if seed is not None:
            self._key, self._num_episodes = seed, 0
        elif self._key is None:
            self._key = int(self.np_random.integers(MAX_SEED))
        drawn_index, drawn_seed = scenes.episode_scenes(self._key, self._num_episodes, self.num_images)
        if scene_seed is None:
            scene_seed = self.config.fixed_scene_seed
        self._num_episodes += 1
        self._index = drawn_index if index is None else index
        self._scene_seed = drawn_seed if scene_seed is None else scene_seed
        indices = np.array([self._index], np.int64)
        key = scenes.scene_keys(self._index, self._scene_seed, self.config.split)
        self._placement = scenes.place(indices, np.array([key], np.int64), self._data.images.shape, self.config)
        self._retina.show(self._data.images, indices, self._placement)
        self._path = [scenes.first_locations(key) if location is None else location]
        self._num_steps, self._prediction = 0, None
        return self._observe(), {}

    def step(self, action: dict[str, Any]) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Looks at the action's location or, at step T, answers with its label."""
        if self._num_steps is None:
            raise gym.error.ResetNeeded("the episode has ended or none has begun: call reset() before step()")
        check_keys("action", action, ("location", "label"), required=True)
        location = check_location("action['location']", action["location"])
        label = check_integer("action['label']", action["label"], self.num_classes)
        self._num_steps += 1
        if not rules.is_answer(self._num_steps, self.config):
            self._path.append(location)
            return self._observe(), rules.reward(False), False, False, {}
        self._num_steps, self._prediction = None, label
        answer = int(self._data.labels[self._index])
        is_success = label == answer
        info = {
            "label": answer,
            "prediction": label,
            "is_success": is_success,
            "index": self._index,
            "scene_seed": self._scene_seed,
        }
        return self._observe(), rules.reward(is_success), True, False, info

    def render(self) -> np.ndarray | None:
        """The canvas with the path and the patches' squares, and the glimpse. uint8 (height, width, 3).

        None where `render_mode` is None.

        Raises:
            gymnasium.error.ResetNeeded: no episode has begun.
        """
        if self.render_mode is None:
            gym.logger.warn("render() needs render_mode: gym.make(..., render_mode='rgb_array')")
            return None
        return render_frame(
            self.canvas,
            np.stack(self._path),
            self._observe()["glimpse"],
            self.config,
            self._prediction,
            self.label,
            self.class_names,
        )

    @property
    def canvas(self) -> np.ndarray:
        """The hidden scene, uint8 (C, S, S). For drawing and for references: no observation shows it."""
        self._require_episode()
        return self._retina.canvases[0]

    @property
    def label(self) -> int:
        """The hidden scene's right label. For drawing and for references."""
        self._require_episode()
        return int(self._data.labels[self._index])

    @property
    def digit_location(self) -> np.ndarray:
        """The hidden location of the image's centre on the canvas, float32 (2,). For references."""
        self._require_episode()
        assert self._placement is not None
        return scenes.digit_locations(self._placement, self._data.images.shape, self.config)[0]

    def _require_episode(self) -> None:
        if not self._path:
            raise gym.error.ResetNeeded("no episode has begun: call reset() first")

    def _observe(self) -> dict[str, np.ndarray]:
        location = self._path[-1].copy()
        return {"glimpse": self._retina.look(location[None])[0], "location": location}

    def _check_options(self, options: dict[str, Any]) -> tuple[int | None, int | None, np.ndarray | None]:
        check_keys("options", options, ("index", "scene_seed", "location"), required=False)
        index, scene_seed, location = (options.get(key) for key in ("index", "scene_seed", "location"))
        if index is not None:
            index = check_integer("options['index']", index, self.num_images)
        if scene_seed is not None:
            scene_seed = check_integer("options['scene_seed']", scene_seed, 2**63)
        if location is not None:
            location = check_location("options['location']", location)
        return index, scene_seed, location

    def __getstate__(self) -> dict[str, Any]:
        """A copy in another process loads a named dataset itself: pickles stay small."""
        state = self.__dict__.copy()
        if self.config.dataset != CUSTOM_DATASET:
            del state["_data"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if "_data" not in state:
            self._data = load_dataset(self.config.replace(data_root=self._data_root))
