"""The retina: scenes and locations -> glimpses.

A glimpse is `num_scales` square patches around one location, each `scale_factor` times as wide as the one before, all
average-pooled to `patch_size` pixels.

Source: Mnih et al. 2014, section 3.1 (glimpse sensor, figure 1A).
Differs: nothing in what is seen. NumPy and PyTorch copy glimpses from a pyramid of box sums (pyramids.py). On a GPU,
where reading memory is what takes time, a kernel pools as it reads (kernels.py). A glimpse has the same bits from
each, on every device and in every batch size.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device, is_torch_array

from ram_gym import scenes
from ram_gym.config import GlimpseConfig
from ram_gym.coordinates import Array
from ram_gym.pyramids import PIXELS_AT_ONCE, Pyramids, blocks, by_blocks, namespace


class Retina:
    """What takes glimpses: `show` it N scenes, then `look` at them as often as need be.

    Args:
        config: the sensor's patch size and scales, and the canvas size S.
        channels: number C of the scenes' channels.
        device: where scenes and glimpses are, a PyTorch device; None: NumPy's arrays.

    Example:
        >>> retina = Retina(GlimpseConfig(patch_size=4), channels=1)
        >>> retina.show(np.full((2, 1, 28, 28), 255, np.uint8))
        >>> retina.look(np.zeros((2, 2), np.float32)).shape
        (2, 1, 4, 4)
    """

    def __init__(self, config: GlimpseConfig, channels: int, device: Any = None) -> None:
        self._config, self._channels, self._device = config, channels, _resolve(device)
        backend = _Kernel if _has_kernel(self._device) else Pyramids
        self._backend: Any = backend(config, channels, self._device)
        self._table: Array | None = None  # of the scenes that are shown, in the form that the backend looks at

    def share(self, images: np.ndarray) -> Any:
        """A copy of images on the device, of which scenes are shown soonest.

        Where scenes are images and nothing else, a CPU has less to do with the pyramids of all images, made once. They
        take twice the room, more with several scales or large patches, and then are not made.

        Args:
            images: uint8 (num_images, C, H, W).

        Returns:
            What `show` takes as images.
        """
        import torch

        config = self._config
        is_small = config.num_scales == 1 and 2 * config.patch_size <= config.canvas_size
        if self._device.type == "cpu" and is_small and scenes.are_images(images.shape, config):
            of_images = Retina(config, self._channels)
            of_images.show(images)
            return _Ready(torch.from_numpy(of_images._table))
        return torch.tensor(images, device=self._device)

    def show(
        self,
        images: Any,
        indices: Array | None = None,
        placement: scenes.Placement | None = None,
        lanes: Array | None = None,
    ) -> None:
        """Shows scenes from now on.

        Args:
            images: what scenes are made of, uint8 (num_images, C, H, W), or what `share` gave for them; without
                indices the canvases themselves, uint8 (N, C, S, S).
            indices: int64 (N,), the image of each scene.
            placement: from `scenes.place`, where everything lies.
            lanes: int64 (N,), which of the scenes that were shown these N replace; None: all.
        """
        if lanes is None:
            self._table = self._draw(images, indices, placement, self._table)
        else:
            assert self._table is not None
            self._table.index_copy_(0, lanes, self._draw(images, indices, placement, None))

    def look(self, locations: Array) -> Array:
        """The glimpses of all scenes.

        Args:
            locations: float32 (N, 2), (x, y) in [-1, 1].

        Returns:
            float32 (N, K * C, P, P) in [0, 1]; channel k * C + c is scale k of the canvas's channel c.
        """
        return self._backend.look(self._table, locations)

    @property
    def canvases(self) -> Array:
        """The scenes that are shown: a copy, uint8 (N, C, S, S)."""
        xp = namespace(self._device)
        rows = self._backend.pixel_rows(self._table)
        return xp.astype(rows[..., : self._config.canvas_size], xp.uint8, copy=True)

    def _draw(
        self, images: Any, indices: Array | None, placement: scenes.Placement | None, table: Array | None
    ) -> Array:
        """A table of scenes; written over `table` where that is one of as many."""
        if isinstance(images, _Ready):
            import torch

            return torch.index_select(images.table, 0, indices, out=table)  # type: ignore[arg-type]
        backend, size = self._backend, self._config.canvas_size
        num = len(images if indices is None else indices)
        if table is None or len(table) != num:
            table = backend.new(num)
        parts = blocks(num, self._channels * size**2, PIXELS_AT_ONCE, table)
        scratch = backend.new_scratch(table[parts[0]])
        for part in parts:
            rows = backend.pixel_rows(table[part])
            if indices is None or placement is None:
                rows[..., :size] = images[part]
            else:
                places = scenes.Placement(*(value[part] for value in placement))
                scenes.compose(images, indices[part], places, self._config, rows)
            backend.sum_boxes(table[part], scratch)
        return table


class _Ready(NamedTuple):
    """Images that are scenes, ready to be looked at."""

    table: Array


class _Kernel:
    """As `Pyramids`, where a kernel pools patches straight from the canvases: a table is uint8 (N, C, S, S)."""

    def __init__(self, config: GlimpseConfig, channels: int, device: Any) -> None:
        self._config, self._channels, self._device = config, channels, device

    def new(self, num: int) -> Array:
        size = self._config.canvas_size
        xp = namespace(self._device)
        return xp.zeros((num, self._channels, size, size), dtype=xp.uint8, device=self._device)

    def pixel_rows(self, table: Array) -> Array:
        return table

    def new_scratch(self, table: Array) -> None:
        """None is needed."""

    def sum_boxes(self, table: Array, scratch: None) -> None:
        """There are none."""

    def look(self, table: Array, locations: Array) -> Array:
        from ram_gym import kernels

        config = self._config
        return kernels.sense(table, locations, config.patch_size, config.num_scales, config.scale_factor)


def _resolve(device: Any) -> Any:
    """The device that tensors get which are made on it: "cuda" may be any GPU."""
    if device is None:
        return None
    import torch

    return torch.empty(0, device=device).device


def _has_kernel(device: Any) -> bool:
    """Whether the sensor is one kernel on a device: a GPU, where Triton's works."""
    return device is not None and device.type == "cuda" and _kernel_works(device)


@cache
def _kernel_works(where: Any) -> bool:
    """Whether the kernel runs on a device and first small glimpses of it are PyTorch's. It needs Triton, a compiler and
    headers.
    """
    import torch

    try:
        from ram_gym import kernels

        config = GlimpseConfig(canvas_size=12, patch_size=4, num_scales=3)
        canvases = torch.arange(7, 7 * 289, 7, device="cpu").to(torch.uint8).view(2, 1, 12, 12)
        locations = torch.tensor([[-0.3, 0.2], [0.5, -1.0]], dtype=torch.float32, device="cpu")
        glimpses = kernels.sense(canvases.to(where), locations.to(where), 4, 3, 2).cpu()
        if not torch.equal(glimpses, take_glimpses(canvases, locations, config)):
            raise ArithmeticError("its glimpses differ from those of PyTorch")
    except torch.cuda.OutOfMemoryError:
        raise  # says nothing of the kernel
    except Exception as error:  # of the compiler, the driver, the headers or Triton: whatever it is, PyTorch can do it
        text = f"glimpses are taken by PyTorch, more slowly, since the Triton kernel does not work on {where}"
        warnings.warn(f"{text}: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=2)
        return False
    return True


def take_glimpses(canvases: Array, locations: Array, config: GlimpseConfig) -> Array:
    """The glimpses of canvases at locations: what a `Retina` gives, for a single look.

    Args:
        canvases: uint8 (N, C, S, S), a NumPy array or a PyTorch tensor.
        locations: float32 (N, 2) in [-1, 1], of the same kind.
        config: the sensor's patch size and scales, and the canvas size S.

    Returns:
        float32 (N, K * C, P, P) in [0, 1], of the same kind.

    Raises:
        ValueError: canvases or locations of another type, shape, range or device.
        TypeError: one is an array and the other a tensor.

    Example:
        >>> import numpy as np
        >>> white = np.full((1, 1, 28, 28), 255, np.uint8)
        >>> take_glimpses(white, np.zeros((1, 2), np.float32), GlimpseConfig()).mean()
        np.float32(1.0)
    """
    xp = array_namespace(canvases, locations)
    size = config.canvas_size
    shape = tuple(canvases.shape)
    if canvases.dtype != xp.uint8 or len(shape) != 4 or shape[1] == 0 or shape[2:] != (size, size):
        raise ValueError(f"canvases must be uint8 (N, C, {size}, {size}), got {canvases.dtype} of shape {shape}")
    if locations.dtype != xp.float32 or tuple(locations.shape) != (canvases.shape[0], 2):
        raise ValueError(
            f"locations must be float32 ({canvases.shape[0]}, 2), got {locations.dtype} of shape "
            f"{tuple(locations.shape)}"
        )
    if device(canvases) != device(locations):
        raise ValueError(f"locations must be on the canvases' device, {device(canvases)}, got {device(locations)}")
    if not xp.all(xp.abs(locations) <= 1):
        raise ValueError("locations must lie in [-1, 1]; clip them with ram_gym.coordinates.clip_locations")
    where = canvases.device if is_torch_array(canvases) else None
    if _has_kernel(where):
        return _Kernel(config, shape[1], where).look(canvases, locations)
    retina = Retina(config, shape[1], where)

    def take(seen: Array, places: Array) -> Array:
        retina.show(seen)
        return retina.look(places)

    # Each block of scenes is looked at while it is in the cache.
    return by_blocks(take, blocks(shape[0], shape[1] * size**2, PIXELS_AT_ONCE, canvases), canvases, locations)
