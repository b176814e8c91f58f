"""Decompositions of operators that are faster than PyTorch's kernels in a graph compiled for a CPU.

Each returns `NotImplemented` to use PyTorch's own kernel. The percentages are end-to-end gains on two cores of an AMD
EPYC (Zen 4), from paired runs of `benchmarks/throughput.py` on 2026-11-28.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAX_ROWS, MAX_WEIGHT = 3, 16_384
"""Largest products that are computed as sums. With 4 rows, both methods take 21 us for a policy of 17-64-64-6 units."""
MAX_INPUTS = 24
"""Largest number of inputs of a layer whose weight gradient is computed by `narrow_product`."""

# The rational approximation of tanh that Eigen uses: x p(x^2) / q(x^2), highest power first.
TANH_P: tuple[float, ...] = (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08)
TANH_P += (1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03)
TANH_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


def small_product(rows: Tensor, weight: Tensor) -> Tensor:
    """Compute a product with few rows as sums, which fuse with the operations around them.

    Gain on HalfCheetah-v5 1 x 2048: 15 % (with one environment, the policy acts on one row).
    """
    is_supported = rows.device.type == "cpu" and weight.stride(0) == 1
    if not is_supported or rows.shape[0] > MAX_ROWS or weight.numel() > MAX_WEIGHT:
        return NotImplemented
    return (rows.unsqueeze(1) * weight.t().unsqueeze(0)).sum(-1)


def linear(bias: Tensor, rows: Tensor, weight: Tensor, **factors: Any) -> Tensor:
    """Compute a product plus a bias.

    The addition of the bias fuses with the operations that follow. PyTorch's `addmm` copies the bias first. The results
    are bitwise equal. An optimizer step of HalfCheetah-v5 takes 7 % less time with minibatches of 64.
    """
    small = NotImplemented if factors else small_product(rows, weight)
    if small is not NotImplemented:
        return small + bias
    if factors or rows.device.type != "cpu" or rows.dtype != torch.float32:
        return NotImplemented
    return ((rows @ weight).unsqueeze(0) + bias).squeeze(0)  # without the views, Inductor fuses both into an addmm


def narrow_product(left: Tensor, right: Tensor) -> Tensor:
    """Compute the weight gradient of a layer with few inputs, left @ right, as the transpose of right^T @ left^T.

    MKL takes 20 us for `[64, 256] @ [256, 4]`, and 4 us for its transpose. An optimizer step of CartPole-v1 takes 11 %
    less time with minibatches of 256 and of 4096.
    """
    is_supported = left.device.type == "cpu" and left.dtype == torch.float32 and left.stride(0) == 1
    if not is_supported or right.shape[1] > MAX_INPUTS or right.shape[1] >= left.shape[0]:
        return NotImplemented
    return (right.t() @ left.t()).t().contiguous()  # later operations may view it


def product(left: Tensor, right: Tensor) -> Tensor:
    """Compute a product with `small_product` or `narrow_product`."""
    small = small_product(left, right)
    return narrow_product(left, right) if small is NotImplemented else small


def fast_tanh(x: Tensor) -> Tensor:
    """Approximate tanh to 4e-7.

    Gain on CartPole-v1 8 x 32: 12 %.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return NotImplemented
    x = x.clamp(-7.905, 7.905)
    return x * polynomial(TANH_P, x * x) / polynomial(TANH_Q, x * x)


def polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """Evaluate a polynomial at `x` by Horner's rule, highest power first."""
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


def interleave_channels(image: Tensor, *, memory_format: torch.memory_format | None = None) -> Tensor:
    """Copy four channels of bytes to channels-last memory as one 32-bit number per pixel.

    Gain on ALE/Pong-v5 8 x 128 in bfloat16: 7 % together with `widen_convolution_backward`.
    """
    to_last = memory_format == torch.channels_last and image.is_contiguous()
    if not to_last or image.device.type != "cpu" or image.dtype != torch.uint8 or image.shape[1] != 4:
        return NotImplemented
    first, second, third, fourth = image.to(torch.int32).unbind(1)
    pixels = first | second << 8 | third << 16 | fourth << 24
    return pixels.view(torch.uint8).unflatten(-1, (-1, 4)).permute(0, 3, 1, 2)


def widen_convolution_backward(
    gradient: Tensor, image: Tensor, weight: Tensor, bias_sizes: list[int] | None, stride: list[int], *options: Any
) -> Any:
    """Compute the gradients of a strided convolution as those of one with stride 1 over wider pixels.

    The memory layout is the same, but the convolution library computes the gradient of the image in 20 % less time.
    """
    padding, dilation, transposed, _, groups, _ = options
    is_plain = len(stride) == 2 and not transposed and groups == 1 and max(padding) == 0 and max(dilation) == 1
    if not is_plain or stride[1] == 1 or not (can_widen(image, stride[1]) and can_widen(weight, stride[1])):
        return NotImplemented
    wide = wider(image, stride[1]), wider(weight, stride[1])
    *by_inputs, by_bias = torch.ops.aten.convolution_backward(gradient, *wide, bias_sizes, [stride[0], 1], *options)
    return *(one if one is None else narrower(one, stride[1]) for one in by_inputs), by_bias


def can_widen(image: Tensor, factor: int) -> bool:
    """Return whether `factor` neighbouring pixels of a row are contiguous."""
    on_cpu = image.device.type == "cpu"
    return on_cpu and image.shape[3] % factor == 0 and image.is_contiguous(memory_format=torch.channels_last)


def wider(image: Tensor, factor: int) -> Tensor:
    """View `[n, channels, height, width]` as `[n, factor * channels, height, width / factor]`."""
    return image.permute(0, 2, 3, 1).unflatten(2, (-1, factor)).flatten(3).permute(0, 3, 1, 2)


def narrower(image: Tensor, factor: int) -> Tensor:
    """View `[n, factor * channels, height, width]` as `[n, channels, height, width * factor]`; inverse of `wider`."""
    return image.permute(0, 2, 3, 1).unflatten(3, (factor, -1)).flatten(2, 3).permute(0, 3, 1, 2)


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.mm.default: product,
    torch.ops.aten.addmm.default: linear,
    torch.ops.aten.tanh.default: fast_tanh,
    torch.ops.aten.clone.default: interleave_channels,
    torch.ops.aten.convolution_backward.default: widen_convolution_backward,
}


class CacheableDecompositions(dict[Any, Callable[..., Any]]):
    """Decompositions that Inductor's cache on disk identifies by the contents of this file.

    Inductor cannot hash the functions themselves and would compile again in every process.
    """

    def __reduce__(self) -> Any:
        return str, (sha256(Path(__file__).read_bytes()).hexdigest(),)
