"""Checks of what callers hand over: each gives a value of the environment's own, or raises before anything changes.

`numbers` is the one rule for what a number is. The single and the vector environment, `evaluate`, the wrappers and
`GlimpseConfig` all go by it.
"""

from __future__ import annotations

import math
import reprlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from array_api_compat import is_torch_array

from ram_gym.coordinates import as_numpy, clip_locations

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_SEED = 2**62
"""Seeds of environments are below this, so that lane i's, which is i more, is an int64 too."""

Shapes = tuple[tuple[int, ...], ...]


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


# ------------------------------------------------------------------------------------------------- what is a number


def numbers(name: str, value: Any, expected: str, device: torch.device | None = None) -> Any:
    """Real numbers of any library: integers and floats, alone, in sequences, in arrays or in dense tensors.

    No numbers are bools, complex numbers, strings, None, masked entries, and tensors without values or without a
    fixed place for each (meta, nested, sparse, quantised).

    Args:
        name: what the value is called in errors.
        value: what came.
        expected: what was expected, for errors.
        device: where the numbers go; None is the host.

    Returns:
        An array of integers, floats or Python's ints (dtype object, where they may be beyond 64 bits), which may share
        memory with the value. Where both the value and `device` are elsewhere than on the host, a dense tensor without
        gradient: nothing waits for a device.

    Raises:
        ValueError: it is something else.
    """
    if not _is_host(device) and is_torch_array(value) and not _is_host(value.device):
        return _real_tensor(name, value, expected)
    array = as_array(name, value, expected)
    if array.dtype.kind not in "iuf" and not (array.dtype == object and _holds_integers(array)):
        raise ValueError(f"{name} must be {expected}, got {_told(value)}")
    return array


def _is_host(device: torch.device | None) -> bool:
    """Whether what is there can be read without waiting."""
    return device is None or device.type == "cpu"


def as_array(name: str, value: Any, expected: str) -> np.ndarray:
    """What came, as an array on the host, whatever its entries are.

    Raises:
        ValueError: NumPy cannot hold it, or some of its entries are masked.
    """
    try:
        array = np.asarray(as_numpy(value))
    except Exception as error:  # of the caller's __array__, or of PyTorch: whatever it is, the argument is wrong
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{name} must be {expected}, got {_told(value)}: {reason}") from error
    masked = np.ma.MaskedArray
    if isinstance(value, masked) or (isinstance(value, list | tuple) and masked in map(type, value)):
        entries = [value] if isinstance(value, masked) else value
        if any(map(np.ma.is_masked, entries)):
            raise ValueError(f"{name} must be {expected}, got masked entries")
    return array


def _real_tensor(name: str, value: Tensor, expected: str) -> Tensor:
    import torch

    is_dense = value.layout == torch.strided and not value.is_nested and not value.is_quantized
    if not is_dense or value.device.type == "meta" or value.is_complex() or value.dtype == torch.bool:
        raise ValueError(f"{name} must be {expected}, got {_told(value)}")
    return value.detach()


def _holds_integers(array: np.ndarray) -> bool:
    """Whether an array of objects holds Python's or NumPy's integers alone."""
    return all(isinstance(entry, int | np.integer) and not isinstance(entry, bool) for entry in array.flat)


def _told(value: Any) -> str:
    """What a value is, in a few words, for an error."""
    try:
        if hasattr(value, "dtype") and value.ndim:
            return f"{value.dtype} of shape {tuple(value.shape)}"
        return " ".join(reprlib.repr(value).split())
    except Exception:  # of a broken __repr__, or of a tensor that has no shape
        return type(value).__name__


def as_integer(value: Any) -> int | None:
    """A single integer of any library as Python's; None where it is none."""
    if isinstance(value, int | np.integer):
        return None if isinstance(value, bool) else int(value)
    try:
        array = numbers("value", value, "an integer")
    except ValueError:
        return None
    return None if array.shape or array.dtype.kind == "f" else int(array.item())


def check_integer(name: str, value: Any, bound: int, low: int = 0) -> int:
    """An integer in [low, bound)."""
    number = as_integer(value)
    if number is None or not low <= number < bound:
        got = _told(value) if number is None else number
        raise ValueError(f"{name} must be an integer in [{low}, {bound}), got {got}")
    return number


def check_location(name: str, value: Any) -> np.ndarray:
    """A finite location, clipped: float32 (2,), a copy on the host."""
    shapes = ((2,),)
    expected = _expected_locations(shapes)
    return _clipped(name, numbers(name, value, expected), expected, shapes)


def _clipped(name: str, given: np.ndarray, expected: str, shapes: Shapes) -> np.ndarray:
    """Finite locations of one of the given shapes, clipped: float32, a copy."""
    if given.shape not in shapes:
        raise ValueError(f"{name} must be {expected}, got shape {given.shape}")
    if given.dtype == object:
        given = given.clip(-1, 1).astype(np.float64)
    if given.shape == (2,):  # of two numbers Python is quicker than NumPy
        x, y = given.tolist()
        if not (math.isfinite(x) and math.isfinite(y)):
            raise ValueError(f"{name} must be {expected}, got {[x, y]}")
        return np.array((min(max(x, -1.0), 1.0), min(max(y, -1.0), 1.0)), np.float32)
    if np.count_nonzero(np.isfinite(given)) < given.size:
        raise ValueError(f"{name} must be {expected}, got NaN or infinity")
    # In the precision they came in, so that what float32 cannot hold is clipped like the rest.
    return np.minimum(np.maximum(given, -1.0), 1.0).astype(np.float32, copy=False)


def _expected_locations(shapes: Shapes) -> str:
    return f"finite numbers {' or '.join(map(str, shapes))}, (x, y)"


def _expected_integers(shapes: Shapes, bound: int) -> str:
    kinds = [f"integers {shape}" if shape else "an integer" for shape in shapes]
    return f"{' or '.join(kinds)} in [0, {bound})"


# ------------------------------------------------------------------------------------------ for the vector environment


def check_device(device: Any) -> torch.device:
    """A device of PyTorch's that can be used here."""
    import torch

    try:
        torch.zeros(1, device=(checked := torch.device(device)))
    except Exception as error:  # PyTorch has no class of its own for it
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device must be one that PyTorch can use here, got {device!r}: {reason}") from error
    if checked.type == "meta":
        raise ValueError(f"device must be one that holds values, got {device!r}")
    return checked


def check_mask(name: str, value: Any, num_envs: int) -> np.ndarray | None:
    """A mask of lanes, bool (N,), a copy on the host, True somewhere."""
    if value is None:
        return None
    expected = f"bool ({num_envs},), True somewhere"
    mask = as_array(name, value, expected).copy()
    if mask.shape != (num_envs,) or mask.dtype != np.bool_:
        raise ValueError(f"{name} must be {expected}, got {_told(value)}")
    if not mask.any():
        raise ValueError(f"{name} must be {expected}, got False everywhere")
    return mask


class Checked(NamedTuple):
    """What a caller handed over, as the environment's own."""

    value: Tensor
    is_good: Tensor | None
    """Bool, for each value, whether it may be used, where only another device knows; None: all may."""

    def or_zero(self) -> Checked:
        """The same with 0 in place of what may not be used."""
        import torch

        return self if self.is_good is None else Checked(torch.where(self.is_good, self.value, 0), self.is_good)


def check_integers(
    name: str, value: Any, bound: int, num_envs: int, device: torch.device, *, one_for_all: bool = True
) -> Checked:
    """Integers in [0, bound), one a lane or (unless not `one_for_all`) one for all lanes: int64 (N,), a copy.

    One a lane may also have shape (N, 1), as some libraries give it. What comes from the host is checked here; of what
    is on another device already, `is_good` tells.
    """
    import torch

    shapes: Shapes = ((), (num_envs,)) if one_for_all else ((num_envs,),)
    expected = _expected_integers(shapes, bound)
    given = numbers(name, value, expected, device)
    is_float = given.is_floating_point() if isinstance(given, torch.Tensor) else given.dtype.kind == "f"
    if not one_for_all and tuple(given.shape) == (num_envs, 1):
        given = given.reshape(num_envs)
    if is_float or tuple(given.shape) not in shapes:
        raise ValueError(f"{name} must be {expected}, got {_told(value)}")
    if isinstance(given, torch.Tensor):
        given = given.to(torch.int64).expand(num_envs).to(device, copy=True)
        return Checked(given, is_within(given, bound))
    low, high = int(given.min()), int(given.max())
    if low < 0 or high >= bound:
        raise ValueError(f"{name} must be {expected}, got {low} to {high}")
    copy = np.empty(num_envs, np.int64)
    copy[...] = given
    return Checked(torch.from_numpy(copy).to(device), None)


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
        any_seed = next((seed for seed in value if seed is not None), 0)
        value = [any_seed if seed is None else seed for seed in value]
    expected = _expected_integers(((), (num_envs,)), MAX_SEED)
    given = numbers("seed", value, expected)
    seeds, _ = check_integers("seed", given, MAX_SEED, num_envs, torch.device("cpu"))
    return seeds if given.ndim else seeds + torch.arange(num_envs, device=seeds.device)


def check_locations(name: str, value: Any, num_envs: int, device: torch.device, *, one_for_all: bool = True) -> Checked:
    """Locations, clipped, one a lane or (unless not `one_for_all`) one for all lanes: float32 (N, 2), a copy.

    What comes from the host is checked here; of what is on another device already, what is not finite becomes 0, and
    `is_good` tells of it.
    """
    import torch

    shapes: Shapes = ((2,), (num_envs, 2)) if one_for_all else ((num_envs, 2),)
    expected = _expected_locations(shapes)
    given = numbers(name, value, expected, device)
    if not isinstance(given, torch.Tensor):
        locations = torch.from_numpy(_clipped(name, given, expected, shapes)).to(device)
        return Checked(locations if locations.ndim == 2 else locations.repeat(num_envs, 1), None)
    if tuple(given.shape) not in shapes:
        raise ValueError(f"{name} must be {expected}, got {_told(value)}")
    if given.dtype not in (torch.float16, torch.float32, torch.float64):  # others have no such arithmetic
        given = given.to(torch.float32)
    is_finite = given.abs() < math.inf  # two operations, where isfinite() takes four
    locations = clip_locations(torch.where(is_finite, given, 0.0)).to(device, torch.float32)
    return Checked(locations if locations.ndim == 2 else locations.repeat(num_envs, 1), is_finite)


def check_actions(actions: Any, num_classes: int, num_envs: int, device: torch.device) -> tuple[Checked, Checked]:
    """Locations float32 (N, 2) and labels int64 (N,) of all lanes."""
    check_keys("actions", actions, ("location", "label"), required=True)
    location, label = actions["location"], actions["label"]
    locations = check_locations("actions['location']", location, num_envs, device, one_for_all=False)
    labels = check_integers("actions['label']", label, num_classes, num_envs, device, one_for_all=False)
    return locations, labels


class DeferredChecks:
    """Raises for bad values that came on a GPU, without waiting for it: once it has met them, at a later report.

    Args:
        device: where they are; on "cpu" nothing is ever bad, since all is checked as it comes.
    """

    def __init__(self, device: torch.device) -> None:
        import torch

        self._device = device
        self._are_good: list[Tensor] = []  # not yet in the flag
        self._flag = torch.zeros((), dtype=torch.bool, device=device)
        is_pinned = device.type == "cuda" and torch.cuda.is_available()
        self._flag_on_host = torch.zeros((), dtype=torch.bool, device="cpu", pin_memory=is_pinned)

    def take(self, checked: Checked | None) -> Any:
        """The value, or None; that some of it may be bad is noted."""
        if checked is None:
            return None
        if checked.is_good is not None:
            self._are_good.append(checked.is_good.flatten().to(self._device))
        return checked.value

    def report(self) -> None:
        """Raises ValueError for the bad values that the device has met by now, once.

        The flag travels to the host behind the running work, so nothing waits.
        """
        import torch

        if _is_host(self._device):
            return
        if bool(self._flag_on_host):
            self._are_good = []
            self._flag.fill_(False)
            self._flag_on_host.copy_(self._flag)  # behind the copies that are under way
            raise ValueError("an earlier reset or step got a NaN or infinite location, or a number out of range")
        if self._are_good:
            self._flag |= ~torch.cat(self._are_good).all()
            self._are_good = []
        self._flag_on_host.copy_(self._flag, non_blocking=True)
