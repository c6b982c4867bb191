"""GlimpseVectorEnv keeps its contract, in each autoreset mode; in one file, like the class."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch._subclasses.fake_tensor import DataDependentOutputException

from ram_gym import GlimpseEnv, GlimpseVectorEnv
from ram_gym.retina import _Ready

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="NEEDS A GPU"))]
NUM_ENVS = 5
SETTING: dict[str, Any] = {
    "canvas_size": 14,
    "num_glimpses": 3,
    "patch_size": 4,
    "num_scales": 2,
    "num_clutter": 2,
    "clutter_size": 3,
}


Task = tuple[tuple[np.ndarray, np.ndarray], dict[str, Any]]


@pytest.fixture(params=["composed scenes", "images alone"])
def task(request: pytest.FixtureRequest, small_images: tuple) -> Task:
    """A dataset and settings: scenes are composed one by one, or are images, whose box sums a CPU makes once."""
    if request.param == "composed scenes":
        return small_images, SETTING
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 6, 3), dtype=np.uint8)
    return (images, small_images[1]), {"canvas_size": 6, "num_glimpses": 3, "patch_size": 3}


def make(small_images: tuple, num_envs: int = NUM_ENVS, **arguments: Any) -> GlimpseVectorEnv:
    return GlimpseVectorEnv(num_envs, dataset=small_images, **{**SETTING, **arguments})


def to_numpy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: to_numpy(entry) for key, entry in value.items()}
    return value.cpu().numpy() if isinstance(value, torch.Tensor) else value


def random_actions(rng: np.random.Generator, num_envs: int = NUM_ENVS) -> dict[str, np.ndarray]:
    locations = rng.uniform(-1.3, 1.3, (num_envs, 2)).astype(np.float32)
    return {"location": locations, "label": rng.integers(0, 5, num_envs)}


class Reference:
    """N single environments in a loop, reset as a mode asks: what the vector environment must equal."""

    def __init__(self, task: Task, mode: AutoresetMode) -> None:
        self.envs = [GlimpseEnv(dataset=task[0], **task[1]) for _ in range(NUM_ENVS)]
        self.mode = mode
        self.is_over = [False] * NUM_ENVS

    def step(self, lane: int, action: dict[str, Any]) -> tuple[Any, float, bool, dict, Any, dict]:
        """Observation, reward, terminated, info, final observation, final info."""
        env = self.envs[lane]
        if self.mode == AutoresetMode.NEXT_STEP and self.is_over[lane]:
            self.is_over[lane] = False
            return env.reset()[0], 0.0, False, {}, None, {}
        observation, reward, terminated, _, info = env.step(action)
        self.is_over[lane] = terminated
        if terminated and self.mode == AutoresetMode.SAME_STEP:
            return env.reset()[0], reward, terminated, {}, observation, info
        return observation, reward, terminated, info, None, {}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("out_of_step", [False, True])
def test_each_lane_equals_a_single_environment_bit_for_bit(
    task: Task, mode: AutoresetMode, output: Any, device: str, out_of_step: bool
) -> None:
    data, setting = task
    vector = GlimpseVectorEnv(NUM_ENVS, dataset=data, autoreset_mode=mode, output=output, device=device, **setting)
    reference = Reference(task, mode)
    rng = np.random.default_rng(0)
    observations = to_numpy(vector.reset(seed=10)[0])
    singles = [env.reset(seed=10 + lane)[0] for lane, env in enumerate(reference.envs)]
    for count in range(20):
        for lane, single in enumerate(singles):
            np.testing.assert_array_equal(observations["glimpse"][lane], single["glimpse"])
            np.testing.assert_array_equal(observations["location"][lane], single["location"])
        over = np.array(reference.is_over)
        if (mode == AutoresetMode.DISABLED and over.any()) or (out_of_step and count in (1, 7)):
            mask = over if mode == AutoresetMode.DISABLED and over.any() else rng.random(NUM_ENVS) < 0.5
            mask[0] |= not mask.any()
            observations = to_numpy(vector.reset(options={"reset_mask": mask})[0])
            for lane in np.flatnonzero(mask):
                singles[lane], reference.is_over[lane] = reference.envs[lane].reset()[0], False
            continue
        actions = random_actions(rng)
        observations, rewards, terminated, truncated, info = (to_numpy(x) for x in vector.step(actions))
        assert not truncated.any()
        finals = info.get("final_info", {}) if mode == AutoresetMode.SAME_STEP else info
        for lane in range(NUM_ENVS):
            action = {"location": actions["location"][lane], "label": actions["label"][lane]}
            singles[lane], reward, ended, expected_info, last, last_info = reference.step(lane, action)
            assert (rewards[lane], terminated[lane]) == (reward, ended)
            for key, value in {**expected_info, **last_info}.items():
                assert finals[key][lane] == value
                assert finals[f"_{key}"][lane]
            if not ended:
                assert not any(finals[key][lane] for key in finals)
            if last is not None:
                assert info["_final_obs"][lane]
                np.testing.assert_array_equal(info["final_obs"]["glimpse"][lane], last["glimpse"])
                np.testing.assert_array_equal(info["final_obs"]["location"][lane], last["location"])


def test_numpy_and_torch_outputs_have_the_kinds_users_expect(small_images: tuple) -> None:
    arrays = make(small_images)
    observation, _ = arrays.reset(seed=0)
    assert arrays.observation_space.contains(observation)
    _, reward, terminated, truncated, _ = arrays.step(arrays.action_space.sample())
    assert (reward.dtype, terminated.dtype, truncated.dtype) == (np.float64, np.bool_, np.bool_)
    tensors = make(small_images, output="torch")
    observation, _ = tensors.reset(seed=0)
    _, reward, terminated, truncated, _ = tensors.step(random_actions(np.random.default_rng(0)))
    assert (reward.dtype, terminated.dtype, truncated.dtype) == (torch.float32, torch.bool, torch.bool)


def test_options_choose_scene_and_location_per_lane_or_for_all(small_images: tuple) -> None:
    envs = make(small_images, output="torch")
    envs.reset(options={"index": np.arange(5) + 3, "scene_seed": 4, "location": np.full((5, 2), 0.5)})
    assert envs.labels.tolist() == [3, 4, 0, 1, 2]
    same, _ = envs.reset(options={"index": 2, "scene_seed": torch.tensor([1, 1, 2, 2, 1]), "location": (0.0, 0.0)})
    glimpses = same["glimpse"]
    assert torch.equal(glimpses[0], glimpses[1])
    assert torch.equal(glimpses[0], glimpses[4])
    assert not torch.equal(envs.canvases[0], envs.canvases[2])
    kept = envs.canvases
    mask = torch.tensor([False, True, False, False, True])
    envs.reset(options={"reset_mask": mask, "index": np.array([9, 9, 9, 9, 8])})
    assert envs.labels.tolist() == [2, 4, 2, 2, 3]
    assert torch.equal(envs.canvases[0], kept[0])


@pytest.mark.parametrize("num_glimpses", [1, 2, 3])
@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_what_callers_do_to_observations_changes_nothing(
    task: Task, mode: AutoresetMode, output: Any, render_mode: str | None, num_glimpses: int
) -> None:
    fields = {**task[1], "num_glimpses": num_glimpses}
    careful, careless = (
        GlimpseVectorEnv(
            NUM_ENVS, dataset=task[0], autoreset_mode=mode, output=output, render_mode=render_mode, **fields
        )
        for _ in range(2)
    )
    rng = np.random.default_rng(0)
    outcomes: list[Any] = [(careful.reset(seed=3), careless.reset(seed=3))]
    for count in range(12):
        if mode == AutoresetMode.DISABLED and careful._is_over.any():
            options = {"reset_mask": careful._is_over.copy()}
            outcomes.append((careful.reset(options=options), careless.reset(options=options)))
        elif count in (1, 4):  # from there on lanes are not in step
            options = {"reset_mask": np.arange(NUM_ENVS) % 3 == 0}
            outcomes.append((careful.reset(options=options), careless.reset(options=options)))
        else:
            action = random_actions(rng)
            outcomes.append((careful.step(action), careless.step(action)))
        ours, theirs = outcomes[-1]
        for observation in (theirs[0], theirs[-1].get("final_obs")):
            for key, value in (observation or {}).items():
                observation[key] = value.clone() if output == "torch" else value.copy()
                value[...] = 9
        np.testing.assert_equal(list(map(to_numpy, ours)), list(map(to_numpy, theirs)))
        if render_mode:
            np.testing.assert_equal(careful.render(), careless.render())


def test_what_is_handed_out_is_not_shared(small_images: tuple) -> None:
    for output in ("numpy", "torch"):
        envs, untouched = (make(small_images, output=output, autoreset_mode="SameStep") for _ in range(2))
        handed = [envs.reset(seed=0)[0]]
        untouched.reset(seed=0)
        rng, same = np.random.default_rng(1), np.random.default_rng(1)
        for _ in range(8):
            actions = random_actions(rng)
            ours = envs.step(actions)
            theirs = untouched.step(random_actions(same))
            np.testing.assert_array_equal(to_numpy(ours[0]["glimpse"]), to_numpy(theirs[0]["glimpse"]))
            if "final_obs" in ours[4]:
                np.testing.assert_array_equal(
                    to_numpy(ours[4]["final_obs"]["glimpse"]), to_numpy(theirs[4]["final_obs"]["glimpse"])
                )
                masks = {key: ours[4][key] for key in ("_final_obs", "_final_info")}
                handed += [ours[4]["final_obs"], ours[4]["final_info"], masks]
                assert len({id(mask) for mask in (ours[2], *masks.values())}) == 3
                ours[2][...] = False
                assert masks["_final_obs"].any()
                final = ours[4]["final_info"]
                final["_label"][...] = False
                assert all(final[key].any() for key in final if key.startswith("_") and key != "_label")
            handed += [ours[0], {"reward": ours[1], "terminated": ours[2], "truncated": ours[3]}, actions]
            for values in handed:
                for value in values.values():
                    if isinstance(value, torch.Tensor | np.ndarray):
                        value[...] = 0


def test_modes_are_given_as_enum_name_or_value_and_declared(small_images: tuple) -> None:
    for given in (AutoresetMode.SAME_STEP, "SameStep", "SAME_STEP"):
        envs = make(small_images, autoreset_mode=given)
        assert envs.autoreset_mode is envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert make(small_images).autoreset_mode is AutoresetMode.NEXT_STEP
    with pytest.raises(ValueError, match="'NextStep'"):
        make(small_images, autoreset_mode="sometimes")
    for arguments, message in (({"output": "jax"}, "output"), ({"num_envs": 0}, "num_envs")):
        with pytest.raises(ValueError, match=message):
            make(small_images, **arguments)


def test_seed_lists_and_partial_seeding(small_images: tuple) -> None:
    envs = make(small_images)
    by_list, _ = envs.reset(seed=[10, 11, 12, 13, 14])
    by_one, _ = make(small_images).reset(seed=10)
    np.testing.assert_array_equal(by_list["glimpse"], by_one["glimpse"])
    before = by_list["glimpse"].copy()
    again, _ = envs.reset(seed=10, options={"reset_mask": np.array([True, False, False, False, False])})
    np.testing.assert_array_equal(again["glimpse"], before)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.usefixtures("fake_tensors")
def test_nothing_on_a_gpu_waits_for_it_or_meets_the_host(small_images: tuple, mode: AutoresetMode) -> None:
    envs = make(small_images, output="torch", autoreset_mode=mode, device="cuda")
    envs._deferred.report = lambda: None  # type: ignore[method-assign]  # reads a flag in pinned memory
    index = torch.arange(5, device="cuda")
    for options in ({}, {"index": 3, "scene_seed": 4, "location": (0.0, 0.5)}, {"index": index, "scene_seed": index}):
        observation, _ = envs.reset(options=options)
        for _ in range(envs.config.num_glimpses):
            label = torch.zeros(5, dtype=torch.int64, device="cuda")
            observation, reward, *_ = envs.step({"location": observation["location"], "label": label})
        assert (observation["glimpse"].device.type, reward.device.type) == ("cuda", "cuda")
        if mode == AutoresetMode.NEXT_STEP:
            envs.step({"location": observation["location"], "label": label})
    with pytest.raises(DataDependentOutputException):
        bool(envs.labels.any())


def test_arguments_are_copied(small_images: tuple) -> None:
    for kind in (np.array, torch.tensor):
        index, seeds, scene_seed = kind([3, 4, 5, 6, 7]), kind([1, 2, 3, 4, 5]), kind([1, 1, 1, 1, 1])
        location, mask = kind([[0.5, 0.5]] * 5), kind([True] * 5)
        envs, untouched = make(small_images, num_glimpses=1), make(small_images, num_glimpses=1)
        options = {"index": index, "scene_seed": scene_seed, "location": location, "reset_mask": mask}
        for env in (envs, untouched):
            env.reset(seed=seeds, options=options)
            if env is envs:
                kept = [value + 0 for value in (index, seeds, scene_seed, location)]
                for value in (index, seeds, scene_seed, location):
                    value += 1
                actions = random_actions(np.random.default_rng(0))
                ours = [env.step(actions), env.step(actions), env.step(actions)]
                index, seeds, scene_seed, location = kept
                options = {"index": index, "scene_seed": scene_seed, "location": location, "reset_mask": mask}
        theirs = [untouched.step(actions) for _ in range(3)]
        for our, their in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(our[0]["glimpse"], their[0]["glimpse"])
            np.testing.assert_array_equal(our[0]["location"], their[0]["location"])
            assert our[4].keys() == their[4].keys()
            for key in our[4]:
                np.testing.assert_array_equal(our[4][key], their[4][key])


@pytest.mark.filterwarnings("error")
def test_arrays_of_every_kind_are_taken(small_images: tuple) -> None:
    location = np.random.default_rng(0).uniform(-1, 1, (5, 2)).astype(np.float32)
    label = np.arange(5)
    frozen = location.copy()
    frozen.setflags(write=False)
    kinds = [
        (location[:, ::-1][:, ::-1], label[::-1][::-1]),
        (location.astype(">f4"), label.astype(">i8")),
        (frozen, np.broadcast_to(label, (5,))),
        (list(location), list(label)),
        (location.tolist(), label.astype(np.uint8)),
        (torch.tensor(location, requires_grad=True), torch.tensor(label, dtype=torch.int32)),
        (location.astype(np.float64), label.astype(np.uint64)),
    ]
    seen = []
    for kind in kinds:
        envs = make(small_images)
        envs.reset(seed=0)
        seen.append(envs.step({"location": kind[0], "label": kind[1]})[0]["glimpse"])
    for glimpse in seen[1:]:
        np.testing.assert_array_equal(glimpse, seen[0])
    huge, _ = make(small_images).reset(seed=0, options={"location": (1e300, -1e300)})
    assert huge["location"].tolist() == [[1, -1]] * 5


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_handed_out_has_a_gradient(small_images: tuple, device: str) -> None:
    envs = make(small_images, output="torch", device=device)
    location = torch.zeros(5, 2, device=device, requires_grad=True)
    observation, _ = envs.reset(seed=0, options={"location": location})
    for _ in range(4):
        assert not any(value.requires_grad for value in observation.values())
        action = {"location": location * 0.5, "label": torch.zeros(5, dtype=torch.int64, device=device)}
        observation, reward, *_ = envs.step(action)
        assert not reward.requires_grad


def test_seeds_that_are_not_given_are_drawn_once_all_else_is_right(small_images: tuple) -> None:
    envs, untouched = make(small_images), make(small_images)
    for env in (envs, untouched):
        env.reset(seed=3)
    with pytest.raises(ValueError, match="seed must be an integer or integers"):
        envs.reset(seed=[0, None, 2, -1, 4])
    ours, theirs = (env.reset(seed=[0, None, 2, None, 4])[0]["location"] for env in (envs, untouched))
    np.testing.assert_array_equal(ours, theirs)
    again, _ = envs.reset(seed=[0, None, 2, None, 4])
    assert (again["location"] == ours).all(1).tolist() == [True, False, True, False, True]


def test_a_run_without_a_seed_can_be_made_again(small_images: tuple) -> None:
    env = GlimpseEnv(dataset=small_images, patch_size=4)
    for each in (make(small_images), env):
        seen = [each.reset()[0], each.reset()[0]]
        again = [each.reset(seed=each.np_random_seed)[0], each.reset()[0]]
        for ours, theirs in zip(seen, again, strict=True):
            np.testing.assert_array_equal(ours["glimpse"], theirs["glimpse"])
    assert env.np_random_seed != GlimpseEnv(dataset=small_images, patch_size=4).np_random_seed


def test_images_alone_are_kept_ready_to_be_looked_at_where_that_takes_little_room(task: Task) -> None:
    data, setting = task
    images_alone = "num_clutter" not in setting
    for changes in ({}, {"num_scales": 2}, {"patch_size": 4}, {"canvas_size": 15}):
        envs = GlimpseVectorEnv(2, dataset=data, **{**setting, **changes})
        is_ready = isinstance(envs._images, _Ready)
        assert is_ready == (images_alone and not changes)
        size = (envs._images.table if is_ready else envs._images).numel() / data[0].size
        assert 1 <= size <= 2.5 if is_ready else size == 1
        copy = pickle.loads(pickle.dumps(envs))
        np.testing.assert_equal(copy.reset(seed=1), envs.reset(seed=1))
        # Whoever changes what he gave changes no scene.
        before = envs.canvases.clone()
        data[0][...] = 255 - data[0]
        envs.reset(seed=1)
        assert torch.equal(envs.canvases, before)
        data[0][...] = 255 - data[0]


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64", "float8_e5m2", "int8", "int64"])
def test_tensors_of_any_number_type_are_locations(small_images: tuple, name: str) -> None:
    envs = make(small_images, output="torch")
    envs.reset(seed=0)
    given = torch.tensor([[0.5, -2.0]] * NUM_ENVS).to(getattr(torch, name))
    observation, *_ = envs.step({"location": given, "label": torch.zeros(NUM_ENVS, dtype=torch.int16)})
    assert observation["location"].tolist() == [[0.0 if name.startswith("int") else 0.5, -1.0]] * NUM_ENVS
