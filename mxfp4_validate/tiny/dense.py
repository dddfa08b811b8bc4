"""Everything around the experts: transformers' layers over a flat row of tokens, with sums that do not depend on who shares the batch.

transformers' GPT-OSS computes in bf16. Its matrix products round fp32 sums whose order depends on the number of rows, so a request's
answer would depend on its neighbours. Here a product of bf16 numbers is summed in float64, where it is all but exact, and is then rounded
where transformers rounds: the same roundings, another summation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

ATTENTION = "mxfp4-tiny"


@dataclass(frozen=True)
class Group:
    """Sequences of the batch with equally many new tokens: `rows` [B, n] their rows, `slots` [B] where their keys and values lie."""

    rows: Tensor
    slots: Tensor
    length: int  # the longest of them, new tokens included


class KvCache:
    """Keys and values of every layer [slots, length, heads, d] bfloat16; a slot belongs to one sequence at a time."""

    def __init__(self, layers: int, slots: int, length: int, heads: int, head_dim: int, device: str) -> None:
        shape = (layers, slots, length, heads, head_dim)
        self.keys = torch.zeros(shape, dtype=torch.bfloat16, device=device)
        self.values = torch.zeros(shape, dtype=torch.bfloat16, device=device)
        self.slots, self.length = slots, length


@dataclass(frozen=True)
class Batch:
    """One forward: T tokens of several sequences, one after the other. `slots` and `positions` are [T] int64."""

    cache: KvCache
    slots: Tensor
    positions: Tensor
    groups: tuple[Group, ...]


def _rounded(t: Tensor) -> Tensor:
    return t.bfloat16().double()


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    batch: Batch,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [1, heads, T, d], key and value [1, kv heads, T, d] -> [1, T, heads, d] bfloat16."""
    keys, values = batch.cache.keys[module.layer_idx], batch.cache.values[module.layer_idx]
    keys[batch.slots, batch.positions] = key[0].transpose(0, 1)
    values[batch.slots, batch.positions] = value[0].transpose(0, 1)
    q = query[0].transpose(0, 1).double()
    out = torch.empty_like(q, dtype=torch.bfloat16)
    for group in batch.groups:
        k, v = keys[group.slots, : group.length].double(), values[group.slots, : group.length].double()
        mask = _visible(batch.positions[group.rows], group.length, sliding_window)
        out[group.rows] = _attend(q[group.rows], k, v, mask, module.sinks.double(), scaling)
    return out.unsqueeze(0), None


def _visible(positions: Tensor, length: int, window: int | None) -> Tensor:
    """positions [B, n] of queries -> [B, n, length] bool: which keys each may see."""
    q, k = positions.unsqueeze(-1), torch.arange(length, device=positions.device)
    seen = k <= q
    return seen if window is None else seen & (k > q - window)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, sinks: Tensor, scaling: float) -> Tensor:
    """q [B, n, h, d], k and v [B, L, kv, d], mask [B, n, L], all float64 -> [B, n, h, d] bfloat16, rounded wherever transformers rounds."""
    B, n, h, d = q.shape
    shared = h // k.shape[2]
    q = q.unflatten(2, (-1, shared)).permute(0, 2, 3, 1, 4).reshape(B, -1, shared * n, d)
    scores = _rounded(_rounded(q @ k.permute(0, 2, 3, 1)) * scaling).view(B, h, n, -1)
    scores = scores.masked_fill(~mask.unsqueeze(1), -torch.inf)
    scores = torch.cat((scores, sinks.view(1, h, 1, 1).expand(B, h, n, 1)), -1)
    weights = _rounded(torch.softmax(_rounded(scores - scores.amax(-1, keepdim=True)), -1))[..., :-1]
    out = weights.reshape(B, -1, shared * n, k.shape[1]) @ v.transpose(1, 2)
    return out.view(B, h, n, d).transpose(1, 2).bfloat16()


class ExactLinear(torch.nn.Module):
    """A linear layer [..., in] bfloat16 -> [..., out] bfloat16 whose sums are float64 and rounded once: no row depends on another."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self._weight = linear.weight.detach().double().t().contiguous()
        self._bias = None if linear.bias is None else linear.bias.detach().double()

    def forward(self, x: Tensor) -> Tensor:
        product = x.double() @ self._weight
        return (product if self._bias is None else product + self._bias).to(x.dtype)


class Router(torch.nn.Module):
    """transformers' top-k router over a softmax of the chosen logits; `exact` as in `ExactLinear`.

    `renormalise=False` is a fault: the softmax goes over all experts, so that the chosen weights no longer add up to 1.
    """

    def __init__(self, router: Any, exact: bool, renormalise: bool = True) -> None:
        super().__init__()
        self.weight, self.bias, self.top_k = router.weight, router.bias, router.top_k
        self.exact, self.renormalise = exact, renormalise

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [M, H] bfloat16 -> logits [M, E], weights [M, k] and ids [M, k] int64, the floats in bfloat16."""
        if self.exact:
            logits = (x.double() @ self.weight.double().t() + self.bias.double()).to(x.dtype)
        else:
            logits = torch.nn.functional.linear(x, self.weight, self.bias)
        top, ids = torch.topk(logits, self.top_k, dim=-1)
        return logits, (top.softmax(-1) if self.renormalise else logits.softmax(-1).gather(1, ids)), ids


def make_exact(model: torch.nn.Module) -> None:
    """Replace every `torch.nn.Linear` below `model`, experts aside."""
    for name, child in model.named_children():
        if type(child) is torch.nn.Linear:
            setattr(model, name, ExactLinear(child))
        else:
            make_exact(child)


AttentionInterface.register(ATTENTION, attention)
