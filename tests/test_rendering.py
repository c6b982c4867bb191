from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ram_gym import Dataset, GlimpseConfig, GlimpseEnv, GlimpseVectorEnv, render_frame, save_gif

PATH, BACKGROUND, RIGHT, WRONG = (255, 196, 64), (24, 26, 32), (96, 220, 120), (255, 96, 96)
FIRST = (255, 255, 255)
SCALES = ((72, 202, 255), (186, 120, 255), (255, 120, 190), (255, 160, 90))
PLAIN = (10, 20, 30)  # no colour of the drawing
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 6, 6), dtype=np.uint8)
FIELDS: dict[str, Any] = {"dataset": (IMAGES, np.arange(12) % 4), "canvas_size": 9, "num_glimpses": 3, "patch_size": 3}


def has_colour(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (pixels == np.array(colour, np.uint8)).all(axis=-1)


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of the True pixels, the last two one past them."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def draw(
    config: GlimpseConfig, path: Any, canvas: np.ndarray | None = None, **answer: int
) -> tuple[np.ndarray, np.ndarray]:
    """A frame, and the part of it that shows the canvas, found by drawing a plain canvas without any overlay on it."""
    size, side = config.canvas_size, config.patch_size
    plain = np.broadcast_to(np.array(PLAIN, np.uint8)[:, None, None], (3, size, size))
    glimpse = np.zeros((config.num_scales * 3, side, side), np.float32)
    top, left, bottom, right = box_of(
        has_colour(render_frame(plain, np.zeros((1, 2), np.float32), glimpse, config), PLAIN)
    )
    locations = np.array(path, np.float32).reshape(-1, 2)
    frame = render_frame(plain if canvas is None else canvas, locations, glimpse, config, **answer)
    return frame, frame[top:bottom, left:right]


def play(env: Any, seed: int = 0, is_right: bool = True) -> list[np.ndarray]:
    """The frames of one episode, which ends with a right or a wrong answer."""
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    frames, terminated = [env.render()], False
    answer = env.unwrapped.label if is_right else (env.unwrapped.label + 1) % 4
    while not terminated:
        _, _, terminated, _, _ = env.step({"location": rng.uniform(-1, 1, 2), "label": answer})
        frames.append(env.render())
    return frames


@pytest.mark.parametrize(
    ("canvas_size", "patch_size", "num_scales"), [(28, 8, 1), (60, 12, 3), (100, 12, 4), (28, 8, 6), (28, 28, 1)]
)
def test_frames_are_of_one_size_and_large_enough_to_read(canvas_size: int, patch_size: int, num_scales: int) -> None:
    frames = play(
        GlimpseEnv(
            dataset="digits",
            canvas_size=canvas_size,
            patch_size=patch_size,
            num_scales=num_scales,
            render_mode="rgb_array",
        )
    )
    assert len(frames) == 7
    assert {frame.shape for frame in frames} == {frames[0].shape}
    assert {frame.dtype for frame in frames} == {np.dtype(np.uint8)}
    height, width, colours = frames[0].shape
    assert colours == 3
    assert 300 <= height <= 800
    assert 300 <= width <= 1200
    for before, after in itertools.pairwise(frames):
        assert (before != after).any()


@pytest.mark.parametrize(("canvas_size", "zoom"), [(28, 15), (100, 4), (60, 7)])
def test_the_canvas_is_drawn_pixel_by_pixel(canvas_size: int, zoom: int) -> None:
    config = GlimpseConfig(canvas_size=canvas_size, num_scales=2)
    canvas = np.random.default_rng(0).integers(0, 256, (3, canvas_size, canvas_size), dtype=np.uint8)
    _, drawn = draw(config, [(-0.3, 0.2), (0.5, -0.1)], canvas)
    expected = np.kron(canvas.transpose(1, 2, 0), np.ones((zoom, zoom, 1), np.uint8))
    assert drawn.shape == expected.shape == (canvas_size * zoom, canvas_size * zoom, 3)
    changed = (drawn != expected).any(axis=-1)
    overlay = np.any([has_colour(drawn, colour) for colour in (PATH, FIRST, BACKGROUND, *SCALES[:2])], axis=0)
    assert not (changed & ~overlay).any()
    assert 0.005 < changed.mean() < 0.2


def test_grey_canvases_are_drawn_grey_and_red_ones_red() -> None:
    for channels, colour in ((1, (200, 200, 200)), (3, (200, 0, 0))):
        images = np.zeros((1, channels, 6, 6), np.uint8)
        images[:, 0] = 200
        env = GlimpseEnv(dataset=(images, [0]), canvas_size=6, patch_size=2, num_scales=2, render_mode="rgb_array")
        env.reset(options={"location": (0.0, 0.0)})
        frame = env.render()
        assert frame is not None
        assert box_of(has_colour(frame, colour))[3] > 440  # the patches beside the canvas too
        # Canvas and patches are all in that colour: the rest is background, squares, dot and caption.
        assert has_colour(frame, colour).sum() > 0.8 * 420 * 420
        assert not has_colour(frame, colour[::-1] if channels == 3 else (200, 0, 0)).any()


@pytest.mark.parametrize("location", [(0.0, 0.0), (0.5, -0.25), (-0.5, 0.5)])
def test_squares_lie_where_the_patches_are_taken(location: tuple[float, float]) -> None:
    config, zoom = GlimpseConfig(canvas_size=32, patch_size=4, num_scales=3), 13
    _, drawn = draw(config, [location])
    assert drawn.shape == (32 * zoom, 32 * zoom, 3)
    x, y = 16 + 16 * location[0], 16 + 16 * location[1]  # whole pixels, all of them
    for colour, half in zip(SCALES, (2, 4, 8), strict=False):
        top, left, bottom, right = (int(edge * zoom) for edge in (y - half, x - half, y + half, x + half))
        assert box_of(has_colour(drawn, colour)) == (top, left, bottom, right)
        edge = has_colour(drawn[top:bottom, left:right], colour)
        assert edge[0].all()
        assert edge[-1].all()
        assert edge[:, 0].all()
        assert edge[:, -1].all()
        assert not edge[3:-3, 3:-3].any()


def test_squares_off_the_canvas_are_cut_off() -> None:
    config = GlimpseConfig(canvas_size=28, patch_size=8)
    frame, drawn = draw(config, [(-1.0, -1.0)])
    assert box_of(has_colour(drawn, SCALES[0])) == (0, 0, 60, 60)
    assert (frame[:46] == BACKGROUND).all(axis=-1).mean() > 0.9  # but for the caption
    _, drawn = draw(config, [(1.0, 1.0)])
    assert box_of(has_colour(drawn, SCALES[0])) == (360, 360, 420, 420)


def test_the_path_runs_from_the_first_location_to_the_last() -> None:
    config = GlimpseConfig(canvas_size=28, patch_size=2)
    path = [(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5)]
    _, drawn = draw(config, path)
    first, second, last = [(round(210 * (x + 1)), round(210 * (y + 1))) for x, y in path]
    for (x, y), inside in ((first, FIRST), (second, BACKGROUND)):
        assert tuple(drawn[y, x]) == inside
        assert tuple(drawn[y, x + 4]) == tuple(drawn[y + 4, x]) == PATH
    assert has_colour(drawn[last[1] - 4 : last[1] + 5, last[0] - 4 : last[0] + 5], PATH).all()
    assert tuple(drawn[105, 210]) == tuple(drawn[210, 315]) == PATH  # halfway along
    assert tuple(drawn[210, 210]) == PLAIN
    assert not has_colour(draw(config, path[:1])[1][105, 200:], PATH).any()


@pytest.mark.parametrize("channels", [1, 3])
@given(seed=st.integers(0, 2**31))
@settings(max_examples=5, deadline=None)
def test_the_patches_beside_the_canvas_are_the_glimpse(channels: int, seed: int) -> None:
    images = np.random.default_rng(seed).integers(0, 40, (3, channels, 9, 9), dtype=np.uint8)
    env = GlimpseEnv(dataset=(images, [0, 1, 2]), canvas_size=9, patch_size=4, num_scales=3, render_mode="rgb_array")
    observation, _ = env.reset(seed=seed)
    frame = env.render()
    assert frame is not None
    tops = []
    for scale in range(3):
        mask = has_colour(frame, SCALES[scale])
        mask[:, : 12 + 9 * 47 + 12] = False  # the squares on the canvas
        top, left, bottom, right = (edge + shift for edge, shift in zip(box_of(mask), (3, 3, -3, -3), strict=True))
        tops.append(top)
        zoom, rest = divmod(bottom - top, 4)
        assert (rest, right - left) == (0, bottom - top)
        assert zoom >= 10
        expected = np.rint(observation["glimpse"][scale * channels : (scale + 1) * channels] * 255).transpose(1, 2, 0)
        expected = np.broadcast_to(expected, (4, 4, 3)).repeat(zoom, 0).repeat(zoom, 1)
        np.testing.assert_array_equal(frame[top:bottom, left:right], expected)
    assert tops == sorted(tops)  # the finest first


def test_captions_are_green_for_right_answers_and_red_for_wrong_ones() -> None:
    for is_right in (True, False):
        frames = play(GlimpseEnv(**FIELDS, render_mode="rgb_array"), is_right=is_right)
        for frame in frames[:-1]:
            assert not has_colour(frame[:46], RIGHT).any()
            assert not has_colour(frame[:46], WRONG).any()
        assert has_colour(frames[-1][:46], RIGHT).any() == is_right
        assert has_colour(frames[-1][:46], WRONG).any() != is_right
        assert (frames[0][:46] != frames[1][:46]).any()  # it counts
        np.testing.assert_array_equal(frames[-1][46:], frames[-2][46:])  # answering shows the last glimpse again


def test_captions_name_classes_that_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr("PIL.ImageDraw.ImageDraw.text", lambda self, at, text, **options: written.append(text))
    images, labels = FIELDS["dataset"]
    names = ("ant", "bee", "cat", "dromedary camels")
    for class_names in (None, names):
        data = Dataset(images[:, None], labels, 4, class_names)
        for env in (GlimpseEnv, partial(GlimpseVectorEnv, 1, autoreset_mode="Disabled")):
            env = env(**{**FIELDS, "dataset": data}, render_mode="rgb_array")
            for index, answer in ((2, 2), (3, 0)):
                env.reset(options={"index": index})
                for _ in range(3):
                    many = isinstance(env, GlimpseVectorEnv)
                    env.step({"location": np.zeros((1, 2) if many else 2), "label": [answer] if many else answer})
                env.render()
    assert written == [
        *["answer 2: right", "answer 0: wrong, it is 3"] * 2,
        *["answer cat: right", "answer ant: wrong, it is dromedary cam…"] * 2,
    ]


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_lanes_out_of_step_are_drawn_like_single_environments(mode: AutoresetMode, output: Any) -> None:
    rng, lanes = np.random.default_rng(5), 3
    envs = [GlimpseEnv(**FIELDS, render_mode="rgb_array") for _ in range(lanes)]
    vector = GlimpseVectorEnv(lanes, **FIELDS, render_mode="rgb_array", autoreset_mode=mode, output=output)
    vector.reset(seed=7)
    for lane, env in enumerate(envs):
        env.reset(seed=7 + lane)
    is_over, steps_apart = np.zeros(lanes, bool), set()
    for number in range(36):
        mask = rng.random(lanes) < 0.4
        if mask.any() and number % 3 == 2:  # under DISABLED, lanes that have ended may wait while others begin anew
            vector.reset(options={"reset_mask": mask})
            for lane in np.flatnonzero(mask):
                envs[lane].reset()
            is_over &= ~mask
        elif not (mode == AutoresetMode.DISABLED and is_over.any()):
            actions = {
                "location": rng.uniform(-1, 1, (lanes, 2)).astype(np.float32),
                "label": rng.integers(0, 4, lanes),
            }
            vector.step(actions)
            for lane, env in enumerate(envs):
                if is_over[lane]:
                    env.reset()
                    is_over[lane] = False
                    continue
                is_over[lane] = env.step({key: value[lane] for key, value in actions.items()})[2]
                if is_over[lane] and mode == AutoresetMode.SAME_STEP:
                    env.reset()
                    is_over[lane] = False
        frames = vector.render()
        assert frames is not None
        assert len(frames) == lanes
        for lane, env in enumerate(envs):
            np.testing.assert_array_equal(frames[lane], env.render(), err_msg=f"lane {lane} after {number}")
        steps_apart.add(tuple(len(env._path) for env in envs))
    assert any(len(set(counts)) > 1 for counts in steps_apart)


def test_without_render_mode_there_is_a_warning_and_no_frame() -> None:
    for env in (GlimpseEnv(**FIELDS), GlimpseVectorEnv(2, **FIELDS)):
        env.reset(seed=0)
        with pytest.warns(UserWarning, match=r"render\(\) needs render_mode"):
            assert env.render() is None
    with pytest.raises(ValueError, match="render_mode must be None or 'rgb_array', got 'human'"):
        GlimpseEnv(**FIELDS, render_mode="human")
    with pytest.raises(ValueError, match="render_mode must be None or 'rgb_array', got 'human'"):
        GlimpseVectorEnv(2, **FIELDS, render_mode="human")


def test_there_is_nothing_to_draw_before_the_first_reset() -> None:
    for env in (GlimpseEnv(**FIELDS, render_mode="rgb_array"), GlimpseVectorEnv(2, **FIELDS, render_mode="rgb_array")):
        with pytest.raises(gym.error.ResetNeeded):
            env.render()


def test_gifs_hold_every_frame_for_its_time(tmp_path: Path) -> None:
    frames = play(GlimpseEnv(dataset="digits", num_scales=2, render_mode="rgb_array"))
    save_gif(frames, str(tmp_path / "episode.gif"), milliseconds=300, last_milliseconds=1200)
    with Image.open(tmp_path / "episode.gif") as gif:
        assert gif.n_frames == len(frames) == 7
        assert gif.info["loop"] == 0
        durations = []
        for number, frame in enumerate(frames):
            gif.seek(number)
            durations.append(gif.info["duration"])
            shown = np.asarray(gif.convert("RGB"))
            assert shown.shape == frame.shape
            assert np.abs(shown.astype(int) - frame).mean() < 4  # 64 colours
    assert durations == [300] * 6 + [1200]
    with pytest.raises(ValueError, match="frames must hold at least one picture, got none"):
        save_gif([], str(tmp_path / "none.gif"))


def test_frames_that_are_repeated_are_shown_longer(tmp_path: Path) -> None:
    frames = play(GlimpseEnv(**FIELDS, render_mode="rgb_array"))
    save_gif([*frames, frames[-1], frames[-1]], str(tmp_path / "episode.gif"), 100, 100)
    total = 0
    with Image.open(tmp_path / "episode.gif") as gif:
        for number in range(gif.n_frames):
            gif.seek(number)
            total += gif.info["duration"]
    assert total == 100 * (len(frames) + 2)


def test_frames_are_the_callers_own_to_write_on(small_images: Any) -> None:
    env = GlimpseEnv(dataset=small_images, canvas_size=9, patch_size=3, render_mode="rgb_array")
    envs = GlimpseVectorEnv(2, dataset=small_images, canvas_size=9, patch_size=3, render_mode="rgb_array")
    for each, render in ((env, lambda: [env.render()]), (envs, envs.render)):
        each.reset(seed=0)  # type: ignore[attr-defined]
        kept = [frame.copy() for frame in render()]  # type: ignore[union-attr]
        for frame in render():  # type: ignore[union-attr]
            frame[:] = 0
        assert all(np.array_equal(a, b) for a, b in zip(kept, render(), strict=True))  # type: ignore[arg-type]
