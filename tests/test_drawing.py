from __future__ import annotations

import numpy as np

from ram_gym import GlimpseConfig, drawing


def test_lines_differ() -> None:
    for marked in (False, True):
        looks = [tuple(sorted(drawing.line(number, marked=marked).items())) for number in range(8)]
        assert len(set(looks)) == 8
    plain = [drawing.line(number) for number in range(32)]
    assert len({(style["color"], style["linestyle"]) for style in plain}) == 32


def test_names_that_are_too_long_lose_their_beginning() -> None:
    assert drawing.short_name("abcdef", 6) == "abcdef"
    assert drawing.short_name("abcdef", 4) == "…def"


def test_classes_have_names_or_numbers() -> None:
    names = ("ant", "bee\n\x1b[31m", "caterpillar")
    assert [drawing.class_name(label, None) for label in (0, 12)] == ["0", "12"]
    assert [drawing.class_name(label, names, 8) for label in (0, 2)] == ["ant", "caterpi…"]
    assert drawing.class_name(1, names) == r"bee \x1b[31m"


def test_pictures_become_coloured() -> None:
    grey = np.array([[[1, 2], [3, 4]]], np.uint8)
    assert drawing.as_rgb(grey).tolist() == [[[1] * 3, [2] * 3], [[3] * 3, [4] * 3]]
    colour = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    assert drawing.as_rgb(colour)[0, 1].tolist() == [1, 5, 9]


def test_paths_and_squares_in_pixels_by_hand() -> None:
    config = GlimpseConfig(canvas_size=10, patch_size=3, num_scales=2)
    path = np.array([[0.0, -1.0], [0.5, 1.0]], np.float32)
    points, corners = drawing.path_and_corners(path, config)
    assert points.tolist() == [[5, 0], [7.5, 10]]
    assert corners.tolist() == [[4, -1], [6, 9]]  # odd: around pixels 5, 0 and 7, 10
    assert drawing.path_and_corners(path, config, 1)[1].tolist() == [
        [2, -3],
        [5, 7],
    ]  # even: around corners 5, 0 and 8, 10
