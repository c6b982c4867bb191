from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ram_gym import GlimpseConfig, pyramids, retina, scenes, take_glimpses
from ram_gym.coordinates import clip_locations, location_to_pixel, patch_origins, pixel_to_location
from ram_gym.retina import Retina


def ramp(size: int) -> np.ndarray:
    """A canvas whose pixel (x, y) has the value 10 y + x."""
    return (10 * np.arange(size)[:, None] + np.arange(size))[None, None].astype(np.uint8)


def look(canvas: np.ndarray, x: float, y: float, **fields: int) -> np.ndarray:
    config = GlimpseConfig(canvas_size=canvas.shape[-1], **fields)
    return take_glimpses(canvas, np.array([[x, y]], np.float32), config)[0] * 255


def test_centre_patch_of_an_even_side_is_the_middle_of_the_canvas() -> None:
    np.testing.assert_allclose(look(ramp(4), 0, 0, patch_size=2)[0], [[11, 12], [21, 22]], rtol=1e-6)


def test_centre_patch_of_an_odd_side_is_centred_on_a_pixel() -> None:
    expected = [[11, 12, 13], [21, 22, 23], [31, 32, 33]]
    np.testing.assert_allclose(look(ramp(5), 0, 0, patch_size=3)[0], expected, rtol=1e-6)


def test_x_is_to_the_right_and_y_is_down() -> None:
    np.testing.assert_allclose(look(ramp(4), 0.5, -0.5, patch_size=2)[0], [[2, 3], [12, 13]], rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (-1, -1, [[0, 0], [0, 0]]),  # of the ramp only pixel (0, 0) = 0 is seen, in the last corner
        (1, 1, [[33, 0], [0, 0]]),
        (1, -1, [[0, 0], [3, 0]]),
        (-1, 1, [[0, 30], [0, 0]]),
    ],
)
def test_outside_the_canvas_is_zero(x: float, y: float, expected: list[list[int]]) -> None:
    np.testing.assert_allclose(look(ramp(4), x, y, patch_size=2)[0], expected, rtol=1e-6)


def test_second_scale_averages_blocks_of_four_pixels() -> None:
    glimpse = look(ramp(4), 0, 0, patch_size=2, num_scales=2)
    np.testing.assert_allclose(glimpse[1], [[5.5, 7.5], [25.5, 27.5]], rtol=1e-6)
    np.testing.assert_allclose(glimpse[0], [[11, 12], [21, 22]], rtol=1e-6)


def test_second_scale_at_the_corner_averages_zeros_in() -> None:
    glimpse = look(np.full((1, 1, 4, 4), 200, np.uint8), -1, -1, patch_size=2, num_scales=2)
    np.testing.assert_allclose(glimpse[1], [[0, 0], [0, 200]], rtol=1e-6)
    glimpse = look(np.full((1, 1, 4, 4), 200, np.uint8), -0.5, 0, patch_size=2, num_scales=2)
    np.testing.assert_allclose(glimpse[1], [[100, 200], [100, 200]], rtol=1e-6)


def test_ties_between_pixels_go_to_the_even_corner() -> None:
    # Side 4: location x is pixel 2 (x + 1). At 0.25 and 0.75 a patch of side 2 could begin on either side.
    assert patch_origins(np.array([[2.5, 3.5]], np.float32), 2).tolist() == [[1, 3]]
    assert patch_origins(np.array([[2.4, 2.6]], np.float32), 2).tolist() == [[1, 2]]
    assert patch_origins(np.array([[2.0, 2.99]], np.float32), 3).tolist() == [[1, 1]]


def test_channels_are_ordered_scale_first() -> None:
    canvas = np.zeros((1, 3, 4, 4), np.uint8)
    canvas[0, :] = np.array([10, 20, 30])[:, None, None]
    glimpse = look(canvas, 0, 0, patch_size=2, num_scales=2)
    np.testing.assert_allclose(glimpse.mean(axis=(1, 2)), [10, 20, 30, 10, 20, 30], rtol=1e-6)


def slow_glimpse(canvas: np.ndarray, location: np.ndarray, config: GlimpseConfig) -> np.ndarray:
    """A glimpse pixel by pixel, in exact fractions of integers, from a canvas with a wide border of zeros."""
    size = config.canvas_size
    border = config.patch_side(config.num_scales - 1) + 2
    wide = np.pad(canvas.astype(np.int64), ((0, 0), (border, border), (border, border)))
    patches = []
    for scale in range(config.num_scales):
        side, block = config.patch_side(scale), config.block_side(scale)
        corner = []
        for axis in (0, 1):
            pixel = float(np.float32(np.float32(location[axis]) + np.float32(1)) * np.float32(size / 2))
            middle = round(pixel) if side % 2 == 0 else int(np.floor(pixel))
            corner.append(middle - side // 2 + border)
        x, y = corner
        square = wide[:, y : y + side, x : x + side]
        blocks = square.reshape(len(canvas), config.patch_size, block, config.patch_size, block).sum(axis=(2, 4))
        patches.append((blocks.astype(np.float64) / (255 * block * block)).astype(np.float32))
    return np.concatenate(patches)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_equals_the_slow_glimpse_bit_for_bit_in_numpy_and_torch(data: st.DataObject) -> None:
    config = GlimpseConfig(
        canvas_size=data.draw(st.integers(1, 24)),
        patch_size=data.draw(st.integers(1, 7)),
        num_scales=data.draw(st.integers(1, 4)),
        scale_factor=data.draw(st.integers(2, 3)),
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    num, channels = data.draw(st.integers(1, 5)), data.draw(st.sampled_from([1, 3]))
    shape = (num, channels, config.canvas_size, config.canvas_size)
    canvases = rng.choice(np.array([0, 1, 254, 255], np.uint8), shape) if rng.random() < 0.3 else None
    canvases = rng.integers(0, 256, shape, dtype=np.uint8) if canvases is None else canvases
    locations = rng.uniform(-1, 1, (num, 2)).astype(np.float32)
    locations[rng.random((num, 2)) < 0.2] = rng.choice([-1.0, 0.0, 1.0])
    fast = take_glimpses(canvases, locations, config)
    for canvas, location, glimpse in zip(canvases, locations, fast, strict=True):
        np.testing.assert_array_equal(glimpse, slow_glimpse(canvas, location, config))
        np.testing.assert_array_equal(take_glimpses(canvas[None], location[None], config)[0], glimpse)
    again = Retina(config, channels)
    for shown in (255 - canvases, canvases):  # other scenes in the same places
        again.show(shown)
    np.testing.assert_array_equal(again.look(locations), fast)
    np.testing.assert_array_equal(again.canvases, canvases)
    in_torch = take_glimpses(torch.as_tensor(canvases), torch.as_tensor(locations), config)
    np.testing.assert_array_equal(in_torch.numpy(), fast)
    with pytest.MonkeyPatch.context() as patch:  # runs of rows, which so few are not copied as
        patch.setattr(pyramids, "RUNS_FROM", 1)
        np.testing.assert_array_equal(take_glimpses(canvases, locations, config), fast)
        in_torch = take_glimpses(torch.as_tensor(canvases), torch.as_tensor(locations), config)
        np.testing.assert_array_equal(in_torch.numpy(), fast)
    assert fast.min() >= 0
    assert fast.max() <= 1


@pytest.fixture
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=[2**31 - 1, 0], ids=["32-bit places", "64-bit places"])
def _places(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(pyramids, "MOST_FOR_INT32", request.param)
    pyramids._constants.cache_clear()
    yield
    pyramids._constants.cache_clear()


@pytest.mark.usefixtures("_threads", "_places")
@pytest.mark.parametrize(("patch", "scales", "factor"), [(1, 2, 3), (1, 3, 2), (2, 3, 2), (3, 2, 2), (3, 2, 3)])
def test_every_place_on_every_half_pixel_borders_included(patch: int, scales: int, factor: int) -> None:
    config = GlimpseConfig(canvas_size=5, patch_size=patch, num_scales=scales, scale_factor=factor)
    ticks = np.arange(11, dtype=np.float32) / 5 - 1
    locations = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2).clip(-1, 1)
    canvases = np.random.default_rng(0).integers(1, 256, (len(locations), 2, 5, 5), dtype=np.uint8)
    slow = np.stack([slow_glimpse(*pair, config) for pair in zip(canvases, locations, strict=True)])
    np.testing.assert_array_equal(take_glimpses(canvases, locations, config), slow)
    many = [torch.as_tensor(given).repeat(16, *[1] * (given.ndim - 1)) for given in (canvases, locations)]
    for threads in (1, 2):  # of so many rows each thread copies some
        torch.set_num_threads(threads)
        np.testing.assert_array_equal(take_glimpses(*many, config).numpy(), np.tile(slow, (16, 1, 1, 1)))


def test_a_white_canvas_gives_exactly_one() -> None:
    for scales, factor in ((4, 2), (3, 3), (2, 5)):
        config = GlimpseConfig(canvas_size=64, patch_size=2, num_scales=scales, scale_factor=factor)
        white = np.full((1, 1, 64, 64), 255, np.uint8)
        assert (take_glimpses(white, np.zeros((1, 2), np.float32), config) == 1).all()


@settings(max_examples=50, deadline=None)
@given(st.floats(-1, 1, width=32), st.integers(1, 200))
def test_pixels_and_locations_are_inverse(location: float, size: int) -> None:
    there = location_to_pixel(np.array([location], np.float32), size)
    assert 0 <= there[0] <= size
    np.testing.assert_allclose(pixel_to_location(there, size), [location], atol=2e-6)


def test_clipping_keeps_what_is_inside() -> None:
    given_locations = np.array([[-3.0, 0.25], [1.5, -1.0]], np.float32)
    assert clip_locations(given_locations).tolist() == [[-1.0, 0.25], [1.0, -1.0]]


@pytest.mark.parametrize(
    "fields",
    [
        {"canvas_size": 12, "num_clutter": 2, "clutter_size": 3, "num_scales": 3},
        {"canvas_size": 6, "num_scales": 2},
        {"canvas_size": 6},  # scenes are images, and their pyramids are made once on a CPU
    ],
)
@pytest.mark.parametrize("device", [None, torch.device("cpu")])
@pytest.mark.parametrize("at_once", [2**20, 1])
def test_scenes_are_shown_in_all_lanes_and_in_some(
    monkeypatch: pytest.MonkeyPatch, fields: dict, device: torch.device | None, at_once: int
) -> None:
    monkeypatch.setattr(retina, "PIXELS_AT_ONCE", at_once)
    config = GlimpseConfig(patch_size=3, **fields)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (9, 3, 6, 6), dtype=np.uint8)
    locations = rng.uniform(-1, 1, (5, 2)).astype(np.float32)
    eye = Retina(config, 3, device)
    shared = images if device is None else eye.share(images)
    expected = np.zeros((5, 3, config.canvas_size, config.canvas_size), np.uint8)
    for lanes in (range(5), [0, 3], range(5), [4]):
        indices = rng.integers(0, 9, len(lanes))
        keys = scenes.scene_keys(indices, rng.integers(0, 99, len(lanes)), "test")
        placement = scenes.place(indices, keys, images.shape, config)
        expected[list(lanes)] = scenes.compose(images, indices, placement, config)
        if device is None:
            if len(lanes) == 5:
                eye.show(images, indices, placement)
            else:  # NumPy's lanes are all shown anew
                eye.show(expected)
        else:
            places = scenes.Placement(*map(torch.from_numpy, placement))
            some = None if len(lanes) == 5 else torch.tensor(lanes)
            eye.show(shared, torch.from_numpy(indices), places, some)
        np.testing.assert_array_equal(eye.canvases, expected)
        there = locations if device is None else torch.from_numpy(locations)
        np.testing.assert_array_equal(eye.look(there), take_glimpses(expected, locations, config))
        assert eye.look(there).dtype in (np.float32, torch.float32)
    before = eye.canvases
    before[...] = 7
    np.testing.assert_array_equal(eye.canvases, expected)


@pytest.mark.parametrize("num", [0, 1, 7])
@pytest.mark.parametrize("as_torch", [False, True])
def test_glimpses_do_not_depend_on_how_many_are_taken_at_once(
    monkeypatch: pytest.MonkeyPatch, num: int, as_torch: bool
) -> None:
    config = GlimpseConfig(canvas_size=12, patch_size=3, num_scales=2)
    rng = np.random.default_rng(num)
    canvases = rng.integers(0, 256, (num, 2, 12, 12), dtype=np.uint8)
    locations = rng.uniform(-1, 1, (num, 2)).astype(np.float32)
    given = (torch.as_tensor(canvases), torch.as_tensor(locations)) if as_torch else (canvases, locations)
    whole = np.asarray(take_glimpses(*given, config))
    assert whole.shape == (num, 4, 3, 3)
    sizes = []
    for name in ("_look", "_look_at_one"):
        look = getattr(pyramids.Pyramids, name)
        recording = lambda self, p, where, look=look: (sizes.append(len(p)), look(self, p, where))[1]  # noqa: E731
        monkeypatch.setattr(pyramids.Pyramids, name, recording)
    monkeypatch.setattr(retina, "PIXELS_AT_ONCE", 3 * 2 * 12**2 + 1)  # three lanes
    monkeypatch.setattr(pyramids, "VALUES_AT_ONCE", 2 * 4 * 3**2)  # two of them
    np.testing.assert_array_equal(take_glimpses(*given, config), whole)
    assert sizes == {0: [0], 1: [1], 7: [2, 1, 2, 1, 1]}[num]


@pytest.mark.parametrize(
    ("canvases", "locations", "message"),
    [
        (torch.zeros(2, 1, 28, 28), torch.zeros(2, 2), "canvases must be uint8 (N, C, 28, 28), got torch.float32"),
        (torch.zeros(2, 1, 27, 28).byte(), torch.zeros(2, 2), "got torch.uint8 of shape (2, 1, 27, 28)"),
        (
            torch.zeros(2, 1, 28, 28).byte(),
            torch.zeros(2, 2).double(),
            "locations must be float32 (2, 2), got torch.float64",
        ),
        (torch.zeros(2, 1, 28, 28).byte(), torch.zeros(1, 2), "got torch.float32 of shape (1, 2)"),
        (torch.zeros(2, 1, 28, 28).byte(), torch.full((2, 2), 1.01), "locations must lie in [-1, 1]"),
        (torch.zeros(2, 1, 28, 28).byte(), torch.full((2, 2), torch.nan), "locations must lie in [-1, 1]"),
        (torch.zeros(2, 1, 28, 28).byte().to("meta"), torch.zeros(2, 2), "on the canvases' device, meta, got cpu"),
    ],
)
def test_what_is_no_canvas_or_location_is_refused(
    canvases: torch.Tensor, locations: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        take_glimpses(canvases, locations, GlimpseConfig())
