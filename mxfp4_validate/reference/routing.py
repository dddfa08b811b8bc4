"""Routing: from router logits to the (ids, weights) of every token, as GPT-OSS and DeepSeek-V4 define it.

All functions work in the dtype of the logits: float64 for mathematics, float32 for what engines serve. Ids are int64 (`.int()` makes
them what `MoeInputs` takes). Equal scores are decided for the smaller expert id, where torch.topk leaves it open.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxfp4_validate.errors import ShapeError, UsageError

#: Added to the sum that DeepSeek-V4 divides by, as in transformers; below float64's resolution of any ordinary sum.
SUM_GUARD = 1e-20


def gate_logits(x: Tensor, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype = torch.float64) -> Tensor:
    """Router logits [M, E] `x W^T + b` in `dtype`, from x [M, H], weight [E, H] and bias [E] or None of any floating dtype.

    DeepSeek-V4 has no bias here (its correction bias enters the selection only) and is served with dtype=float32.
    Raises `ShapeError` if the shapes do not belong together.
    """
    fits = x.dim() == weight.dim() == 2 and x.shape[1] == weight.shape[1] and (bias is None or bias.shape == weight.shape[:1])
    if not fits:
        shapes = f"x {tuple(x.shape)}, weight {tuple(weight.shape)}, bias {None if bias is None else tuple(bias.shape)}"
        raise ShapeError(f"a router takes x [M, H], weight [E, H] and bias [E]; got {shapes}")
    logits = x.to(dtype) @ weight.to(dtype).t()
    return logits if bias is None else logits + bias.to(dtype)


def route_gpt_oss(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Top-k of the raw logits [M, E], softmax over the selected: ids [M, k] int64 and weights [M, k], slots by descending weight.

    The same as a softmax over all experts, renormalised over the selected, up to rounding. Source: GptOssTopKRouter.
    Raises `ShapeError` for logits that are not [M, E] floating, `UsageError` for a NaN among them or top_k outside 1..E.
    """
    _check_logits(logits)
    ids = _select(logits, top_k)
    return ids, logits.gather(1, ids).softmax(-1)


def sqrt_softplus(logits: Tensor) -> Tensor:
    """DeepSeek-V4's score `sqrt(ln(1 + e^z))`, elementwise in the argument's dtype.

    Exact over the whole range, whereas torch's softplus turns into the identity above z = 20. In float32 the two are one; in float64
    they differ there by up to 5e-11 of the score.
    """
    return torch.logaddexp(logits, torch.zeros_like(logits)).sqrt()


def route_deepseek_v4(
    logits: Tensor,
    correction_bias: Tensor | None,
    top_k: int,
    *,
    routed_scaling_factor: float = 1.5,
    renormalise: bool = True,
    premultiply: bool = True,
) -> tuple[Tensor, Tensor]:
    """Learned layers: top-k of score + correction_bias [E], weights from the bare score. Returns ids [M, k] int64, weights [M, k].

    Slots come in descending order of what they were selected by, so weights need not descend. `renormalise` divides by the sum over the
    selected (+ 1e-20). `premultiply` says where routed_scaling_factor goes: True multiplies the weights by it (transformers, vLLM);
    False leaves it to `layer.combine_shared(mode=RoutedScale.POST)` and does not use it here. Source: DeepseekV4TopKRouter.
    Raises what `route_gpt_oss` raises, and `ShapeError` for a correction_bias that is not [E].
    """
    _check_logits(logits)
    scores = sqrt_softplus(logits)
    selector = scores
    if correction_bias is not None:
        if correction_bias.shape != logits.shape[1:]:
            raise ShapeError(f"correction_bias {tuple(correction_bias.shape)} must be [E={logits.shape[1]}], one number an expert")
        selector = scores + correction_bias
    ids = _select(selector, top_k)
    return ids, _weights(scores, ids, routed_scaling_factor, renormalise, premultiply)


def route_hash(
    logits: Tensor,
    tid2eid: Tensor,
    token_ids: Tensor,
    *,
    routed_scaling_factor: float = 1.5,
    renormalise: bool = True,
    premultiply: bool = True,
) -> tuple[Tensor, Tensor]:
    """Hash layers: experts from the table tid2eid [vocab, k] by token id [M], weights from the learned scores of logits [M, E].

    Returns ids [M, k] int64 in table order and weights [M, k]; the other arguments as in `route_deepseek_v4`. Source: DeepseekV4HashRouter.
    Raises `ShapeError` for wrong shapes or dtypes, `UsageError` for a token id outside the table or an expert id outside 0..E-1.
    """
    _check_logits(logits)
    _check_table(tid2eid)
    if token_ids.shape != logits.shape[:1] or token_ids.is_floating_point():
        raise ShapeError(f"token_ids must be [M={logits.shape[0]}] integers, got {tuple(token_ids.shape)} {token_ids.dtype}")
    _check_range(token_ids, tid2eid.shape[0], "token id", "rows of tid2eid")
    ids = tid2eid[token_ids.long()].long()
    _check_range(ids, logits.shape[1], "tid2eid entry", "experts")
    return ids, _weights(sqrt_softplus(logits), ids, routed_scaling_factor, renormalise, premultiply)


def default_tid2eid(vocab_size: int, top_k: int, num_experts: int) -> Tensor:
    """The table sglang starts from before it loads one: `(token + slot) % num_experts`, [vocab_size, top_k] int64.

    Raises `UsageError` unless vocab_size >= 1 and 1 <= top_k <= num_experts.
    """
    if vocab_size < 1 or not 1 <= top_k <= num_experts:
        raise UsageError(f"vocab_size={vocab_size} must be at least 1 and top_k={top_k} lie in 1..num_experts={num_experts}")
    return (torch.arange(vocab_size)[:, None] + torch.arange(top_k)) % num_experts


def looks_default(table: Tensor, num_experts: int | None = None) -> bool:
    """Whether a table [vocab, k] of integers was never loaded: sglang's initial `(token + slot) % E`, or transformers' zeros.

    Such a table routes plausibly and wrong. E is num_experts; if None, the largest entry gives it.
    Raises `ShapeError` unless the table is [vocab, k] integers, `UsageError` for num_experts below k.
    """
    _check_table(table)
    table = table.long().cpu()
    vocab, top_k = table.shape
    if not table.any():
        return True
    experts = int(table.max()) + 1 if num_experts is None else num_experts
    if num_experts is None and experts < top_k:  # repeats an expert within a row: nobody's default
        return False
    return bool(torch.equal(table, default_tid2eid(vocab, top_k, experts)))


def _select(scores: Tensor, top_k: int) -> Tensor:
    """Ids [M, top_k] of the largest scores [M, E], largest first. A stable sort keeps equal scores in order of their ids."""
    if not 1 <= top_k <= scores.shape[1]:
        raise UsageError(f"top_k={top_k} must lie in 1..num_experts={scores.shape[1]}")
    if scores.isnan().any():
        raise UsageError("router logits or correction bias hold a NaN: no top-k is defined; find the layer that made it")
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]


def _weights(scores: Tensor, ids: Tensor, routed_scaling_factor: float, renormalise: bool, premultiply: bool) -> Tensor:
    weights = scores.gather(1, ids)
    if renormalise:
        weights = weights / (weights.sum(-1, keepdim=True) + SUM_GUARD)
    return weights * routed_scaling_factor if premultiply else weights


def _check_logits(logits: Tensor) -> None:
    if logits.dim() != 2 or not logits.is_floating_point():
        raise ShapeError(f"router logits must be [M, E] floating, got {tuple(logits.shape)} {logits.dtype}")


def _check_table(table: Tensor) -> None:
    if table.dim() != 2 or not table.numel() or table.is_floating_point():
        raise ShapeError(f"tid2eid must be [vocab, top_k] integers and not empty, got {tuple(table.shape)} {table.dtype}")


def _check_range(values: Tensor, end: int, what: str, of: str) -> None:
    wrong = values[(values < 0) | (values >= end)]
    if wrong.numel():
        raise UsageError(f"{what} {int(wrong[0])} lies outside 0..{end - 1}: there are {end} {of}")
