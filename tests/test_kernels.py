from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from ram_gym import GlimpseConfig, GlimpseVectorEnv, retina, take_glimpses

NEEDS_TRITON = pytest.mark.skipif(find_spec("triton") is None, reason="NEEDS TRITON")

KERNEL_CASES = [
    {"canvas_size": 60, "patch_size": 12, "num_scales": 3},
    {"canvas_size": 28, "patch_size": 2, "num_scales": 5},  # blocks of more than 8 x 8, read in fours
    {"canvas_size": 26, "patch_size": 2, "num_scales": 5},  # and one by one
    {"canvas_size": 28, "patch_size": 1, "num_scales": 6},  # and of 32 x 32
    {"canvas_size": 28, "patch_size": 8},
    {"canvas_size": 9, "patch_size": 5, "num_scales": 2},
    {"canvas_size": 12, "patch_size": 3, "num_scales": 3, "scale_factor": 3},
    {"canvas_size": 20, "patch_size": 6, "num_scales": 3},  # a row of six
]


def kernel_and_plain(device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Glimpses of the Triton kernel and of the plain path, of colour canvases, also where rounding ties."""
    from ram_gym import kernels

    pairs = []
    generator = torch.Generator().manual_seed(0)
    for fields in KERNEL_CASES:
        config = GlimpseConfig(**fields)
        size = config.canvas_size
        brightness = torch.rand(40, 3, 1, 1, generator=generator)
        canvases = (torch.randint(256, (40, 3, size, size), generator=generator) * brightness).to(torch.uint8)
        locations = torch.rand(40, 2, generator=generator) * 2 - 1
        locations[:20] = (locations[:20] * size).round() / size  # corners and middles of pixels
        locations[:4] = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [0.0, 0.0]])
        plain = take_glimpses(canvases, locations, config)
        sizes = (config.patch_size, config.num_scales, config.scale_factor)
        pairs.append((kernels.sense(canvases.to(device), locations.to(device), *sizes).cpu(), plain))
        # Views: one byte after where memory begins, and in another order.
        beside = torch.cat((torch.zeros(1), canvases.flatten())).to(device, torch.uint8)[1:].view(canvases.shape)
        swapped = canvases.transpose(2, 3).contiguous().to(device).transpose(2, 3)
        for view, where in ((beside, locations.to(device)), (swapped, locations.to(device).t().contiguous().t())):
            pairs.append((kernels.sense(view, where, *sizes).cpu(), plain))
    return pairs


def environments_with_kernel_and_without(device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Glimpses and canvases of two vector environments, the first with the kernel, lanes out of step."""
    images = torch.randint(256, (20, 6, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    labels = torch.arange(20).numpy() % 5
    ours, theirs = [], []
    with pytest.MonkeyPatch.context() as patch:
        fields = {"canvas_size": 14, "patch_size": 4, "num_scales": 2, "num_clutter": 2, "clutter_size": 3}
        for has_kernel, seen in ((True, ours), (False, theirs)):
            patch.setattr(retina, "_has_kernel", lambda device, it=has_kernel: it and device is not None)
            envs = GlimpseVectorEnv(
                5, dataset=(images, labels), num_glimpses=2, output="torch", device=device, **fields
            )
            assert isinstance(envs._retina._backend, retina._Kernel) == has_kernel
            seen.append(envs.reset(seed=1)[0]["glimpse"])
            action = {"location": torch.linspace(-1, 1, 10).reshape(5, 2), "label": labels[:5]}
            seen.append(envs.reset(options={"reset_mask": torch.arange(5) % 2 == 0})[0]["glimpse"])
            for _ in range(4):
                seen += [envs.step(action)[0]["glimpse"], envs.canvases]
            seen.append(take_glimpses(envs.canvases, action["location"].to(device), envs.config))
    return [(our.cpu(), their.cpu()) for our, their in zip(ours, theirs, strict=True)]


@NEEDS_TRITON
@pytest.mark.parametrize("capability", [80, 90])
def test_kernel_compiles_to_few_wide_instructions(capability: int) -> None:
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ram_gym import kernels

    if not kernels.HAS_DP4A.value:
        pytest.skip("NEEDS PyTorch for CUDA")
    sizes = {"CHANNELS": 1, "SIZE": 60, "PATCH": 12, "NUM_SCALES": 3, "FACTOR": 2, "BLOCK": kernels.PAIRS_PER_PROGRAM}
    kinds = {"canvases": "*u8", "locations": "*fp32", "glimpses": "*fp32", "num_pairs": "i32", "half_canvas": "fp32"}
    signature = kinds | dict.fromkeys(sizes, "constexpr")
    source = ASTSource(kernels._sense, signature, sizes, attrs={(2,): [["tt.divisibility", 16]]})
    options = {"num_warps": kernels.WARPS, "enable_fp_fusion": False}
    compiled = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    code = compiled.asm["ptx"]
    # Of a thread's two values: sums of bytes, by scale; fours of pixels and a location; what is written.
    assert len(re.findall(r"dp4a", code)) == 1 * 2 + 2 * 2 + 4 * 2
    assert len(re.findall(r"ld\.global\.b32", code)) == 1 * 2 + 2 * 2 + 4 * 3 + 2
    assert re.findall(r"st\.\S+", code) == 3 * ["st.global.v2.b32"]
    assert "bar.sync" not in code
    assert compiled.metadata.shared == 0


@NEEDS_TRITON
def test_where_the_kernel_cannot_start_pytorch_takes_the_glimpses() -> None:
    # A CPU is a device on which it cannot, but in the interpreter.
    with pytest.warns(RuntimeWarning, match="glimpses are taken by PyTorch, more slowly, since .* on cpu: "):
        assert not retina._kernel_works.__wrapped__("cpu")


@NEEDS_TRITON
def test_a_kernel_with_other_numbers_gives_way_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    from ram_gym import kernels

    def plain(canvases: torch.Tensor, locations: torch.Tensor, *sizes: int) -> torch.Tensor:
        return take_glimpses(canvases, locations, GlimpseConfig(canvas_size=12, patch_size=4, num_scales=3)) + off

    monkeypatch.setattr(kernels, "sense", plain)
    off = 0.0
    assert retina._kernel_works.__wrapped__("cpu")
    off = 1e-6
    with pytest.warns(RuntimeWarning, match="the Triton kernel does not work on cpu: .*its glimpses differ from those"):
        assert not retina._kernel_works.__wrapped__("cpu")


@NEEDS_TRITON
def test_kernel_gives_the_same_bits_under_tritons_interpreter() -> None:
    code = (
        "import torch\nfrom ram_gym import retina\nfrom tests.kernel_means import means_and_quotients\n"
        "from tests.test_kernels import environments_with_kernel_and_without, kernel_and_plain\n"
        "assert retina._kernel_works('cpu')\n"
        "assert all(torch.equal(*means_and_quotients(side, 'cpu')) for side in (1, 2, 3, 4, 8, 16))\n"
        "pairs = kernel_and_plain('cpu')\n"
        "assert len(pairs) == 24\n"
        "pairs += environments_with_kernel_and_without('cpu')\n"
        "assert all(torch.equal(ours, theirs) and theirs.float().std() > 0 for ours, theirs in pairs)"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "TRITON_INTERPRET": "1"}, check=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="NEEDS A GPU: the sensor is a kernel there")
@pytest.mark.parametrize("has_kernel", [True, False])
def test_take_glimpses_gives_the_same_bits_on_a_gpu(monkeypatch: pytest.MonkeyPatch, has_kernel: bool) -> None:
    if not has_kernel:
        monkeypatch.setattr(retina, "_kernel_works", lambda where: False)
    config = GlimpseConfig(canvas_size=60, patch_size=12, num_scales=3)
    canvases, locations = torch.randint(256, (40, 3, 60, 60), dtype=torch.uint8), torch.rand(40, 2) * 2 - 1
    ours = take_glimpses(canvases.cuda(), locations.cuda(), config)
    assert torch.equal(ours.cpu(), take_glimpses(canvases, locations, config))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="NEEDS A GPU: the sensor is a kernel there")
def test_kernel_gives_the_same_bits_on_a_gpu() -> None:
    if not retina._kernel_works(torch.device("cuda", 0)):
        pytest.skip("NEEDS what Triton needs: a compiler and Python's headers")
    from tests.kernel_means import means_and_quotients

    environments = environments_with_kernel_and_without("cuda")
    for ours, theirs in (
        *kernel_and_plain("cuda"),
        *environments,
        *(means_and_quotients(side, "cuda") for side in (1, 2, 3, 4, 8)),
    ):
        assert torch.equal(ours, theirs)
