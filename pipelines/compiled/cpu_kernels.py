"""What operators are replaced by where a graph is compiled for a CPU, which is faster at it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FEW_ROWS, SMALL_WEIGHT = 3, 16_384
"""Largest products that are sums: a policy of 17-64-64-6 takes 21 us either way for 4 rows, 35 against 22 for 8."""

# Of the rational function that Eigen takes for tanh: x p(x^2) / q(x^2), highest power first.
TANH_P: tuple[float, ...] = (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08)
TANH_P += (1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03)
TANH_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


def small_product(rows: Tensor, weight: Tensor) -> Tensor:
    """A product with few rows as sums, which fuse with what comes before and after; a library call costs more."""
    on_cpu_by_rows = rows.device.type == "cpu" and weight.stride(0) == 1
    if not on_cpu_by_rows or rows.shape[0] > FEW_ROWS or weight.numel() > SMALL_WEIGHT:
        return NotImplemented
    return (rows.unsqueeze(1) * weight.t().unsqueeze(0)).sum(-1)


def small_linear(bias: Tensor, rows: Tensor, weight: Tensor, **factors: Any) -> Tensor:
    """The same with a bias."""
    product = NotImplemented if factors else small_product(rows, weight)
    return product if product is NotImplemented else product + bias


def fast_tanh(x: Tensor) -> Tensor:
    """Within 4e-7 of tanh, at a fraction of what the library's costs, which is a third of a small network's time."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return NotImplemented
    x = x.clamp(-7.905, 7.905)
    return x * polynomial(TANH_P, x * x) / polynomial(TANH_Q, x * x)


def polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """The value at `x` by Horner's rule, highest power first."""
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


def interleaved(image: Tensor, *, memory_format: torch.memory_format | None = None) -> Tensor:
    """Four channels of bytes brought to the last place in memory as one 32-bit number for a pixel.

    Byte by byte it takes four times as long.
    """
    to_last = memory_format == torch.channels_last and image.is_contiguous()
    if not to_last or image.device.type != "cpu" or image.dtype != torch.uint8 or image.shape[1] != 4:
        return NotImplemented
    first, second, third, fourth = image.to(torch.int32).unbind(1)
    pixels = first | second << 8 | third << 16 | fourth << 24
    return pixels.view(torch.uint8).unflatten(-1, (-1, 4)).permute(0, 3, 1, 2)


def wide_backward(
    gradient: Tensor, image: Tensor, weight: Tensor, bias_sizes: list[int] | None, stride: list[int], *options: Any
) -> Any:
    """The gradients of a convolution that steps over several pixels, as of one over wider pixels, one by one.

    It is the same memory; the library takes a fifth less for the image's gradient.
    """
    padding, dilation, transposed, _, groups, _ = options
    is_plain = len(stride) == 2 and not transposed and groups == 1 and max(padding) == 0 and max(dilation) == 1
    if not is_plain or stride[1] == 1 or not (can_widen(image, stride[1]) and can_widen(weight, stride[1])):
        return NotImplemented
    wide = wider(image, stride[1]), wider(weight, stride[1])
    *by_inputs, by_bias = torch.ops.aten.convolution_backward(gradient, *wide, bias_sizes, [stride[0], 1], *options)
    return *(one if one is None else narrower(one, stride[1]) for one in by_inputs), by_bias


def can_widen(image: Tensor, factor: int) -> bool:
    """Whether so many pixels lie together."""
    on_cpu = image.device.type == "cpu"
    return on_cpu and image.shape[3] % factor == 0 and image.is_contiguous(memory_format=torch.channels_last)


def wider(image: Tensor, factor: int) -> Tensor:
    """`[n, channels, height, width] -> [n, factor * channels, height, width / factor]`, of the same memory."""
    return image.permute(0, 2, 3, 1).unflatten(2, (-1, factor)).flatten(3).permute(0, 3, 1, 2)


def narrower(image: Tensor, factor: int) -> Tensor:
    """Undo `wider`: `[n, factor * channels, height, width] -> [n, channels, height, width * factor]`."""
    return image.permute(0, 2, 3, 1).unflatten(3, (factor, -1)).flatten(2, 3).permute(0, 3, 1, 2)


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.mm.default: small_product,
    torch.ops.aten.addmm.default: small_linear,
    torch.ops.aten.tanh.default: fast_tanh,
    torch.ops.aten.clone.default: interleaved,
    torch.ops.aten.convolution_backward.default: wide_backward,
}


class CacheableDecompositions(dict[Any, Callable[..., Any]]):
    """What operators are replaced by, known by this file's content where a compiled graph is looked up on disk.

    Inductor cannot make a key of the functions themselves and would compile anew in every process.
    """

    def __reduce__(self) -> Any:
        """The file's digest, as a string."""
        return str, (sha256(Path(__file__).read_bytes()).hexdigest(),)
