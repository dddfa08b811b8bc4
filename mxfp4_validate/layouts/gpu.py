"""The same bijections as one pass over GPU memory: a thread takes 8 bytes of rows i and i + 8 and writes 16 bytes of one row.

In both layouts word (row 16R + i, bytes 16j + 8m ..) and the word 8 rows below it become the 16 bytes at row 16R + i + 8m, byte 16j; the
layouts differ in what happens between these two words alone. The source is compiled by torch's own NVRTC at first use; where torch lacks
it, the tensor code of `sm90_a` and `sm90_b` serves GPUs too. Both are held against each other by the layout checks.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_THREADS = 256

_SOURCE = r"""
typedef unsigned long long u64;
typedef unsigned int u32;

// Transpose 2 x 2 nibbles of every byte pair: low = (lo a, lo b), high = (hi a, hi b). Its own inverse.
__device__ void nibbles(u64 a, u64 b, u64 &low, u64 &high) {
  const u64 m = 0x0F0F0F0F0F0F0F0FULL;
  low = (a & m) | ((b & m) << 4);
  high = ((a >> 4) & m) | (((b >> 4) & m) << 4);
}

__device__ u64 byte_of(u64 w, int i) { return (w >> (8 * i)) & 0xFF; }

// Layout A: byte 4q + t of (low, high) -> byte 4t + 2q + h of the 16.
__device__ void forward_a(u64 a, u64 b, u64 &w0, u64 &w1) {
  u64 half[2];
  nibbles(a, b, half[0], half[1]);
  w0 = w1 = 0;
  for (int t = 0; t < 4; ++t)
    for (int q = 0; q < 2; ++q)
      for (int h = 0; h < 2; ++h) {
        int at = 4 * t + 2 * q + h;
        u64 v = byte_of(half[h], 4 * q + t) << (8 * (at & 7));
        if (at < 8) w0 |= v; else w1 |= v;
      }
}

__device__ void inverse_a(u64 w0, u64 w1, u64 &a, u64 &b) {
  u64 half[2] = {0, 0};
  for (int t = 0; t < 4; ++t)
    for (int q = 0; q < 2; ++q)
      for (int h = 0; h < 2; ++h) {
        int at = 4 * t + 2 * q + h;
        half[h] |= byte_of(at < 8 ? w0 : w1, at & 7) << (8 * (4 * q + t));
      }
  nibbles(half[0], half[1], a, b);
}

// Layout B: runs of bits of each 32-bit word; RUNS is filled in from sm90_b.BIT_RUNS.
__device__ u32 bits_b(u32 w, bool inverse) {
  const int runs[][3] = {RUNS};
  u32 out = 0;
  for (int r = 0; r < sizeof(runs) / sizeof(runs[0]); ++r) {
    int from = runs[r][inverse ? 1 : 0], to = runs[r][inverse ? 0 : 1];
    out |= ((w >> from) & ((1u << runs[r][2]) - 1)) << to;
  }
  return out;
}

// Byte t of the 32-bit word number t holds, low to high: a[t], b[t], a[4 + t], b[4 + t].
__device__ void forward_b(u64 a, u64 b, u64 &w0, u64 &w1) {
  u32 word[4];
  for (int t = 0; t < 4; ++t)
    word[t] = bits_b((u32)(byte_of(a, t) | byte_of(b, t) << 8 | byte_of(a, 4 + t) << 16 | byte_of(b, 4 + t) << 24), false);
  w0 = word[0] | (u64)word[1] << 32;
  w1 = word[2] | (u64)word[3] << 32;
}

__device__ void inverse_b(u64 w0, u64 w1, u64 &a, u64 &b) {
  a = b = 0;
  for (int t = 0; t < 4; ++t) {
    u64 w = bits_b((u32)((t < 2 ? w0 : w1) >> (32 * (t & 1))), true);
    a |= byte_of(w, 0) << (8 * t) | byte_of(w, 2) << (8 * (4 + t));
    b |= byte_of(w, 1) << (8 * t) | byte_of(w, 3) << (8 * (4 + t));
  }
}

// One thread a pair of words, `words` of them a row. Source word 2j + m goes to row half m, 16-byte unit j; for layout B, whose m
// counts words in fours, that is row half m mod 2, unit 2p + m div 2.
extern "C" __global__ void carry(const u64 *from, u64 *to, int pairs, int words, int layout_b, int inverse) {
  long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (k >= pairs) return;
  int word = (int)(k % words);
  long long row = k / words;
  long long base = (row / 8) * 16 * words;
  int i = (int)(row % 8);
  int upper = word & 1;
  int unit = word >> 1;
  long long plain = base + (long long)i * words + word;
  long long packed = base + (long long)(i + 8 * upper) * words + 2 * unit;
  u64 x, y;
  if (!inverse) {
    u64 a = from[plain], b = from[plain + 8LL * words];
    if (layout_b) forward_b(a, b, x, y); else forward_a(a, b, x, y);
    to[packed] = x; to[packed + 1] = y;
  } else {
    u64 a = from[packed], b = from[packed + 1];
    if (layout_b) inverse_b(a, b, x, y); else inverse_a(a, b, x, y);
    to[plain] = x; to[plain + 8LL * words] = y;
  }
}
"""


@functools.cache
def _kernel(runs: tuple[tuple[int, int, int], ...], device: int) -> Callable[..., Any] | None:
    """The kernel compiled for the current device, number `device`, or None where this torch cannot compile one."""
    compile_kernel = getattr(torch.cuda, "_compile_kernel", None)
    if compile_kernel is None:
        return None
    source = _SOURCE.replace("RUNS", ", ".join(f"{{{a}, {b}, {n}}}" for a, b, n in runs or ((0, 0, 1),)))
    try:
        return compile_kernel(source, "carry")  # type: ignore[no-any-return]
    except (RuntimeError, OSError):
        return None


def carry(weight: Tensor, runs: tuple[tuple[int, int, int], ...], layout_b: bool, inverse: bool) -> Tensor | None:
    """Pack (or unpack) [E, N, K/2] uint8 on its GPU; None where the kernel does not serve, and the caller's tensor code must."""
    if weight.device.type != "cuda" or weight.numel() == 0:
        return None
    weight = weight.contiguous()
    if weight.data_ptr() % 8:
        weight = weight.clone()
    out = torch.empty_like(weight)
    words = weight.shape[2] // 8
    pairs = weight.numel() // 16
    with torch.cuda.device(weight.device):
        if (kernel := _kernel(runs, torch.cuda.current_device())) is None:
            return None
        kernel(
            grid=(-(-pairs // _THREADS), 1, 1),
            block=(_THREADS, 1, 1),
            args=[weight.view(torch.int64), out.view(torch.int64), pairs, words, int(layout_b), int(inverse)],
        )
    return out
