"""Checks of what callers hand over: each gives a value of the environment's own, or raises before anything changes."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ram_gym.coordinates import as_numpy, clip_locations

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_SEED = 2**62
"""Seeds of environments are below this, so that lane i's, which is i more, is an int64 too."""


def fresh_seed() -> int:
    """A seed from the system's randomness, for who gives none: `np_random_seed` then tells it."""
    return int(np.random.SeedSequence().entropy) % MAX_SEED  # type: ignore[arg-type]


def check_keys(name: str, given: Any, expected: tuple[str, ...], *, required: bool) -> None:
    """Raises ValueError unless `given` is a dict whose keys are (all, if required, of) the expected ones."""
    if not hasattr(given, "keys"):
        raise ValueError(f"{name} must be a dict with keys {', '.join(expected)}, got {type(given).__name__}")
    unknown = [str(key) for key in given if key not in expected]
    missing = [key for key in expected if required and key not in given]
    if unknown or missing:
        what = f"unknown {', '.join(unknown)}" if unknown else f"no {', '.join(missing)}"
        raise ValueError(f"{name} must have keys {', '.join(expected)}, got {what}")


def check_integer(name: str, value: Any, bound: int) -> int:
    """An integer in [0, bound)."""
    scalar = as_numpy(value)
    if isinstance(scalar, np.ndarray) and scalar.ndim == 0:
        scalar = scalar.item()
    try:
        number = operator.index(scalar)
    except TypeError:
        raise ValueError(f"{name} must be an integer in [0, {bound}), got {value!r}") from None
    if isinstance(scalar, bool) or not 0 <= number < bound:
        raise ValueError(f"{name} must be an integer in [0, {bound}), got {value!r}")
    return number


def check_location(name: str, value: Any) -> np.ndarray:
    """A finite location, clipped: float32 (2,)."""
    location = _numbers(name, value)
    if location.shape != (2,):
        raise ValueError(f"{name} must have shape (2,), (x, y), got shape {location.shape}")
    numbers = location.tolist()
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} must be finite, got {numbers}")
    return np.array([min(max(number, -1.0), 1.0) for number in numbers], np.float32)


def _numbers(name: str, value: Any) -> np.ndarray:
    """Real numbers, in the precision they came in, so that what float32 cannot hold is clipped like the rest."""
    try:
        numbers = np.asarray(as_numpy(value))
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be numbers (x, y) in [-1, 1], got {value!r}") from None
    if numbers.dtype.kind not in "fiu":
        raise ValueError(f"{name} must be numbers (x, y) in [-1, 1], got {value!r}")
    return numbers


# ------------------------------------------------------------------------------------------ for the vector environment


def check_mask(name: str, value: Any, num_envs: int) -> np.ndarray | None:
    """A mask of lanes, bool (N,), on the host, True somewhere."""
    if value is None:
        return None
    mask = np.array(as_numpy(value))
    if mask.shape != (num_envs,) or mask.dtype != np.bool_:
        raise ValueError(f"{name} must be bool ({num_envs},), got {mask.dtype} of shape {mask.shape}")
    if not mask.any():
        raise ValueError(f"{name} must be True somewhere, got False everywhere")
    return mask


class Checked(NamedTuple):
    """What a caller handed over, as the environment's own."""

    value: Tensor
    is_good: Tensor | None
    """Bool, for each value, whether it may be used, where that is known on another device only; None: all may."""


def check_integers(name: str, value: Any, bound: int, num_envs: int, device: torch.device) -> Checked:
    """An integer in [0, bound) for all lanes, or one a lane: int64 (N,) on a device, not shared.

    What comes from the host is checked here; of what is on another device already, `is_good` tells.
    """
    import torch

    expected = f"an integer or integers ({num_envs},)"
    if isinstance(value, torch.Tensor):
        value = _towards(value, device)
        is_integer = not value.is_floating_point() and not value.is_complex() and value.dtype != torch.bool
        shape = tuple(value.shape)
    else:
        try:
            value = np.asarray(value)
        except ValueError as error:
            raise ValueError(f"{name} must be {expected}: {error}") from None
        is_integer, shape = value.dtype.kind in "iu", value.shape
        if value.dtype == object and value.size and all(isinstance(number, int) for number in value.flat):
            raise ValueError(f"{name} must lie in [0, {bound}), got {min(value.flat)} to {max(value.flat)}")
    if not is_integer or shape not in ((), (num_envs,)):
        raise ValueError(f"{name} must be {expected}, got {value.dtype} of shape {shape}")
    if isinstance(value, torch.Tensor) and value.device.type != "cpu":
        value = value.to(torch.int64).expand(num_envs).to(device, copy=True)
        return Checked(value, is_within(value, bound))
    given: np.ndarray = as_numpy(value)
    low, high = int(given.min()), int(given.max())
    if low < 0 or high >= bound:
        raise ValueError(f"{name} must lie in [0, {bound}), got {low} to {high}")
    numbers = np.empty(num_envs, np.int64)
    numbers[...] = given
    return Checked(torch.from_numpy(numbers).to(device), None)


def _towards(value: Tensor, device: torch.device) -> Tensor:
    """A tensor without gradient, on the host already if that is where it has to go."""
    return value.detach().cpu() if device.type == "cpu" else value.detach()


def is_within(value: Tensor, bound: int) -> Tensor:
    """Whether int64 values lie in [0, bound), bound <= 2^63, which is no int64 itself."""
    return value.clamp(0, bound - 1) == value


def check_seeds(value: Any, num_envs: int) -> Tensor | None:
    """Seeds of the lanes, int64 (N,) on the host: N of them, or one from which lane i's is i more.

    A None in a list is one to be drawn, and here any of the others.
    """
    import torch

    if value is None:
        return None
    if isinstance(value, list | tuple):
        known = next((seed for seed in value if seed is not None), 0)
        value = [known if seed is None else seed for seed in value]
    seeds, _ = check_integers("seed", as_numpy(value), MAX_SEED, num_envs, torch.device("cpu"))
    return seeds if np.ndim(value) else seeds + torch.arange(num_envs, device=seeds.device)


def check_locations(name: str, value: Any, shapes: tuple[tuple[int, ...], ...], device: torch.device) -> Checked:
    """Locations, clipped, float32 of one of the given shapes, on a device.

    What comes from the host is checked here; of what is on another device already, what is not finite becomes 0, and
    `is_good` tells of it.
    """
    import torch

    numbers: np.ndarray | None = None  # where they are on the host
    if isinstance(value, torch.Tensor):
        if value.is_complex() or value.dtype == torch.bool:
            raise ValueError(f"{name} must be numbers (x, y) in [-1, 1], got {value.dtype}")
        locations = _towards(value, device)
        if locations.dtype not in (torch.float16, torch.float32, torch.float64):  # NumPy has no other floats
            locations = locations.to(torch.float32)
    else:
        numbers = _numbers(name, value)
        # A copy in the machine's own byte order, forwards.
        precise = np.array(numbers, np.float32 if numbers.dtype == np.float32 else np.float64)
        locations = torch.from_numpy(precise)
    if tuple(locations.shape) not in shapes:
        raise ValueError(f"{name} must have shape {shapes[-1]}, got {tuple(locations.shape)}")
    if numbers is None and locations.device.type == "cpu":
        numbers = locations.numpy(force=True)
    is_finite = None
    if numbers is None:
        is_finite = locations.abs() < math.inf  # two operations, where isfinite() takes four
        locations = torch.where(is_finite, locations, 0.0)
    elif np.count_nonzero(np.isfinite(numbers)) < numbers.size:  # of few numbers NumPy tells sooner than PyTorch
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return Checked(clip_locations(locations).to(device, torch.float32), is_finite)
