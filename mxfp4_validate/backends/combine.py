"""How an engine adds the shared expert to the routed ones. A backend with a way of its own has a method `layer` of the same signature."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from mxfp4_validate.reference.layer import RoutedScale


def engine_layer(shared: Tensor, routed: Callable[[float], Tensor], routed_scaling_factor: float, mode: RoutedScale) -> Tensor:
    """The layer's output [M, H] bfloat16 from the shared expert's [M, H] bfloat16 and `routed(factor)`, the backend's own output with
    every routing weight times `factor`: the factor goes into the weights, or is applied while adding, as sglang does either way."""
    if mode is RoutedScale.PREMULTIPLIED:
        return shared + routed(routed_scaling_factor)
    return shared.clone().add_(routed(1.0), alpha=routed_scaling_factor)
