"""Defects that can be read in sglang 0.5.12.post1's sources, each provoked in its own code on a CPU; prints a JSON object by name.

    python -m tests.sglang_defects

`shown` says that the wrong thing happened, `evidence` what it was. A process of its own, because of `sglang_rig`'s stubs.
"""

from __future__ import annotations

import ast
import importlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mxfp4_validate.cases import SHAPES, MoeCase
from mxfp4_validate.checkpoints.synthetic import random_inputs, random_weights
from mxfp4_validate.checks import random as random_checks
from mxfp4_validate.checks.context import Context
from mxfp4_validate.errors import CheckFailed, NotSupported
from tests import sglang_rig
from tests.sglang_rig import WHEEL

Found = tuple[bool, str]
CPU = torch.device("cpu")


def method(path: str, name: str, **names: Any) -> Callable[..., Any]:
    """One function of a file that cannot be imported here, with the globals it needs."""
    file = WHEEL / "sglang" / "srt" / path
    nodes = [n for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.FunctionDef) and n.name == name]
    if not nodes:
        raise SystemExit(f"{path} defines no {name}: the wheel has changed")
    node = nodes[0]
    node.decorator_list, node.returns = [], None
    for argument in (*node.args.args, *node.args.kwonlyargs):
        argument.annotation = None
    space: dict[str, Any] = {"torch": torch, "math": math, **names}
    exec(compile(ast.Module(body=[node], type_ignores=[]), str(file), "exec"), space)
    found: Callable[..., Any] = space[name]
    return found


def gpt_oss_on_marlin() -> Found:
    """Biases, alpha and row order of GPT-OSS through `Mxfp4MoEMethod` with the Marlin runner."""
    context, case = Context(sglang_rig.gpt_oss_marlin()), MoeCase(SHAPES["gpt-oss-even"], 17)
    try:
        random_checks.twin(context, case)
    except CheckFailed as error:
        return True, str(error).splitlines()[0]
    return False, "the twin's bits"


def gpt_oss_2880_on_marlin() -> Found:
    """The real hidden size, which Marlin's own test of shapes refuses and nothing pads."""
    case = MoeCase(replace(SHAPES["gpt-oss-even"], hidden_size=2880), 1)
    try:
        sglang_rig.gpt_oss_marlin().prepare(random_weights(case, CPU))
    except NotSupported as error:
        return True, str(error)
    return False, "prepared"


def gpt_oss_loader(tp: int) -> Found:
    """`_load_mxfp4_experts_weights` of the last rank into what `create_weights` allocated for TP=tp; I is 2880, H small."""
    sglang_rig.gpt_oss_sm90()
    hidden, inter, experts = 128, 2880, 1
    quant = importlib.import_module("sglang.srt.layers.quantization.mxfp4").Mxfp4MoEMethod(prefix="")
    layer = torch.nn.Module()
    layer.num_local_experts = experts  # type: ignore[assignment]
    quant.create_weights(layer, experts, hidden, inter // tp, torch.bfloat16, with_bias=True)
    config = SimpleNamespace(get_name=lambda: "mxfp4", is_static_cfg=lambda: True)
    load = method("layers/moe/fused_moe_triton/layer.py", "weight_loader")
    owner = SimpleNamespace(quant_config=config)
    for parameter in layer.parameters():
        parameter.weight_loader = lambda *a, **k: load(owner, *a, **k)  # type: ignore[attr-defined]
    ranks = {"get_moe_tensor_parallel_rank": lambda: 0, "get_moe_tensor_parallel_world_size": lambda: tp}
    experts_of = {"get_moe_expert_parallel_rank": lambda: 0, "get_moe_expert_parallel_world_size": lambda: 1}
    loader = method("models/gpt_oss.py", "_load_mxfp4_experts_weights", default_weight_loader=None, **ranks, **experts_of)
    torch.Tensor.cuda = lambda self: self  # type: ignore[method-assign,assignment]
    model = SimpleNamespace(
        named_parameters=layer.named_parameters, config=SimpleNamespace(intermediate_size=inter, num_local_experts=experts)
    )
    shapes = {
        "gate_up_proj_blocks": (experts, 2 * inter, hidden // 32, 16),
        "down_proj_blocks": (experts, hidden, inter // 32, 16),
        "gate_up_proj_scales": (experts, 2 * inter, hidden // 32),
        "down_proj_scales": (experts, hidden, inter // 32),
    }
    try:
        loader(model, [(name, torch.randint(0, 256, shape, dtype=torch.uint8)) for name, shape in shapes.items()])
    except RuntimeError as error:
        return True, str(error)
    return False, f"loaded; {inter // tp} units a rank"


def padding_id_under_ep() -> Found:
    """Rank 0 of EP=2 and an id of -1, the padding mark: it becomes the last entry of the rank's map; on the last rank that is a real expert."""
    mapping = torch.full((8,), -1, dtype=torch.int32)
    mapping[4:] = torch.arange(4, dtype=torch.int32)
    checker = SimpleNamespace(format_is_standard=lambda o: True, format_is_triton_kernels=lambda o: False)
    names = {"TopKOutputChecker": checker, "_use_aiter": False, "StandardDispatchOutput": SimpleNamespace, "get_device": lambda: "cpu"}
    names |= {"should_use_flashinfer_cutlass_moe_fp4_allgather": lambda: False}
    dispatch = method("layers/moe/token_dispatcher/standard.py", "dispatch", **names)
    topk = importlib.import_module("sglang.srt.layers.moe.topk").StandardTopKOutput(
        torch.ones(1, 2), torch.tensor([[-1, 5]]), torch.ones(1, 8)
    )
    owner = SimpleNamespace(moe_ep_size=2, skip_local_expert_mapping=False, local_expert_mapping=mapping)
    ids = dispatch(owner, hidden_states=torch.zeros(1, 4), topk_output=topk).topk_output.topk_ids
    return int(ids[0, 0]) != -1, f"ids [-1, 5] of the last rank become {ids[0].tolist()}"


def expert_zero() -> Found:
    """Expert 0 of an MXFP4 layer handed to the loader alone, which takes the number for no number."""
    load = method("layers/moe/fused_moe_triton/layer.py", "weight_loader")
    owner = SimpleNamespace(quant_config=SimpleNamespace(get_name=lambda: "mxfp4", is_static_cfg=lambda: True))
    param = torch.nn.Parameter(torch.zeros(4, 8, 16, dtype=torch.uint8), requires_grad=False)
    load(owner, param, torch.ones(1, 8, 16, dtype=torch.uint8), "w13_weight", "w1", 0)
    written = param.data.flatten(1).any(1).nonzero().flatten().tolist()
    return written != [0], f"expert 0's rows were written to experts {written}"


def scale_sign() -> Found:
    """A negative scale, and one that is no power of two, in DeepSeek-V4's fp32 buffers: cast by value without a word."""
    backend = sglang_rig.dsv4_sm90()
    weights = random_weights(MoeCase(SHAPES["dsv4-tiny"], 1), CPU)
    fill, seen = sglang_rig.sglang_layers._fill, []

    def spoil(parameter: Any, values: Tensor) -> None:
        fill(parameter, values)
        if values.dtype is torch.float32:
            seen.append(values)
            parameter.data.mul_(-1.25)

    sglang_rig.sglang_layers._fill = spoil  # type: ignore[assignment]
    try:
        spoiled = backend.prepare(weights)
    finally:
        sglang_rig.sglang_layers._fill = fill  # type: ignore[assignment]
    right = backend.prepare(weights)
    same = torch.equal(spoiled.fc1_scale, right.fc1_scale) and torch.equal(spoiled.fc2_scale, right.fc2_scale)
    return bool(same and seen), "scales times -1.25 give the same bytes" if same else "the bytes differ"


def routed_scale_ignored() -> Found:
    """`routed_scaling_factor` given to `fused_marlin_moe` on MXFP4."""
    backend, case = sglang_rig.marlin(), MoeCase(SHAPES["dsv4-tiny"], 3)
    prepared, inputs = backend.prepare(random_weights(case, CPU)), random_inputs(case, CPU)
    layer, kernel = prepared.layer, importlib.import_module("sglang.srt.layers.moe.fused_moe_triton.fused_marlin_moe").fused_marlin_moe
    weights = (layer.w13_weight, layer.w2_weight, layer.w13_weight_scale, layer.w2_weight_scale)
    first = (inputs.x, *weights, torch.empty(3, 1), inputs.topk_weights, inputs.topk_ids)
    once, scaled = (kernel(*first, num_bits=4, clamp_limit=10.0, routed_scaling_factor=factor) for factor in (None, 1.5))
    return torch.equal(once, scaled), "routed_scaling_factor=1.5 changes no bit" if torch.equal(once, scaled) else "it changes the result"


def constants_of_the_config() -> Found:
    """GPT-OSS's class given a configuration with another alpha and limit."""
    backend = sglang_rig.gpt_oss_sm90()
    prepared = backend.prepare(random_weights(MoeCase(SHAPES["gpt-oss-tiny"], 1), CPU))
    base = importlib.import_module("sglang.srt.layers.moe.moe_runner.base")
    prepared.method.create_moe_runner(prepared.layer, base.MoeRunnerConfig(gemm1_alpha=1.0, gemm1_clamp_limit=10.0))
    constants = [float(getattr(prepared.layer, f"swiglu_{name}")[0]) for name in ("alpha", "limit")]
    asked = [1.0, 10.0]
    return [
        round(c, 3) for c in constants
    ] != asked, f"alpha and limit of the configuration {asked}, used {[round(c, 3) for c in constants]}"


def default_hash_table() -> Found:
    """`HashTopK` whose checkpoint has no tid2eid: the table is a plausible one, and nothing says that it was never loaded."""
    fill = method("layers/moe/hash_topk.py", "_init_default_tid2eid")
    table = SimpleNamespace(tid2eid=torch.nn.Parameter(torch.zeros(6, 3, dtype=torch.int32), requires_grad=False), num_experts=4)
    fill(table)
    rows = table.tid2eid.tolist()
    return all(len(set(row)) == 3 for row in rows), f"token t goes to experts t, t+1, t+2 modulo 4: {rows[:3]}"


DEFECTS: dict[str, Callable[[], Found]] = {
    "gpt-oss-on-marlin": gpt_oss_on_marlin,
    "gpt-oss-2880-on-marlin": gpt_oss_2880_on_marlin,
    "gpt-oss-load-tp1": lambda: gpt_oss_loader(1),
    "gpt-oss-load-tp2": lambda: gpt_oss_loader(2),
    "gpt-oss-load-tp4": lambda: gpt_oss_loader(4),
    "gpt-oss-load-tp8": lambda: gpt_oss_loader(8),
    "padding-id-under-ep": padding_id_under_ep,
    "expert-zero": expert_zero,
    "scale-sign": scale_sign,
    "routed-scale-ignored": routed_scale_ignored,
    "constants-of-the-config": constants_of_the_config,
    "default-hash-table": default_hash_table,
}

if __name__ == "__main__":
    sglang_rig.install()
    print(json.dumps({name: dict(zip(("shown", "evidence"), check(), strict=True)) for name, check in DEFECTS.items()}, indent=1))
