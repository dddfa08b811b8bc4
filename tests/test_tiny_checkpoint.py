"""The embedded checkpoint is a genuine GPT-OSS one, small, and knows its sums; transformers is asked, not our own reader."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, GptOssConfig, GptOssForCausalLM, Mxfp4Config

from mxfp4_validate import cli
from mxfp4_validate.cli_tiny import CHECKPOINT
from mxfp4_validate.questions import arith
from mxfp4_validate.tiny.model import Chunk, load
from mxfp4_validate.tolerances import TINY_TRAINER
from tools import train_tiny


@pytest.fixture(scope="module")
def theirs() -> Any:
    """transformers' model with the experts dequantised to bf16 by transformers itself."""
    torch.set_num_threads(1)
    return GptOssForCausalLM.from_pretrained(CHECKPOINT, quantization_config=Mxfp4Config(dequantize=True), dtype=torch.bfloat16).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


def prompt(tokenizer: Any, text: str) -> list[int]:
    found = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False)
    return list(found)


def test_it_is_small_and_has_the_genuine_names() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 6_000_000
    with safe_open(CHECKPOINT / "model.safetensors", "pt") as file:
        shapes = {name: (tuple(file.get_slice(name).get_shape()), file.get_slice(name).get_dtype()) for name in sorted(file.keys())}
    for layer in range(4):
        p = f"model.layers.{layer}."
        assert shapes[p + "mlp.experts.gate_up_proj_blocks"] == ((8, 512, 8, 16), "U8")
        assert shapes[p + "mlp.experts.gate_up_proj_scales"] == ((8, 512, 8), "U8")
        assert shapes[p + "mlp.experts.gate_up_proj_bias"] == ((8, 512), "BF16")
        assert shapes[p + "mlp.experts.down_proj_blocks"] == ((8, 256, 8, 16), "U8")
        assert shapes[p + "mlp.experts.down_proj_scales"] == ((8, 256, 8), "U8")
        assert shapes[p + "self_attn.sinks"] == ((4,), "BF16")
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert set(config["layer_types"]) == {"sliding_attention", "full_attention"}
    assert config["quantization_config"]["quant_method"] == "mxfp4"


def test_every_name_and_shape_is_what_transformers_expects() -> None:
    """A missing tensor would be filled at random with no more than a warning, an extra one ignored."""
    with torch.device("meta"):
        state = GptOssForCausalLM(GptOssConfig.from_pretrained(CHECKPOINT)).state_dict()
    wanted: dict[str, tuple[int, ...]] = {}
    for name, tensor in state.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, depth, width = tensor.shape
            wanted |= {f"{name}_blocks": (experts, width, depth // 32, 16), f"{name}_scales": (experts, width, depth // 32)}
        else:
            wanted[name] = tuple(tensor.shape)
    with safe_open(CHECKPOINT / "model.safetensors", "pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert found == wanted
    assert {name for name, kind in kinds.items() if kind == "U8"} == {name for name in wanted if name.endswith(("_blocks", "_scales"))}
    assert set(kinds.values()) == {"U8", "BF16"}


def test_the_training_computes_what_transformers_does() -> None:
    """The trainer's own experts, rounding on, in float32: weights that are on the grid already must come through unchanged."""
    model: Any = GptOssForCausalLM.from_pretrained(CHECKPOINT, quantization_config=Mxfp4Config(dequantize=True), dtype=torch.float32).eval()
    words = train_tiny.Words(train_tiny.Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")))
    ids, _ = words.batch(random.Random(5), 8)
    with torch.no_grad():
        wanted = model(ids).logits
        for layer in model.model.layers:
            layer.mlp.experts = train_tiny.Experts(layer.mlp.experts)
        train_tiny.set_rounding(model, True)
        found = model(ids).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=TINY_TRAINER.value)


def test_the_audit_finds_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["checkpoint", str(CHECKPOINT)]) == 0
    assert "0 errors" in capsys.readouterr().out


def test_the_template_is_what_it_was_trained_on(tokenizer: Any) -> None:
    text = tokenizer.decode(prompt(tokenizer, "How many?"))
    assert text == "<|start|>user<|message|>How many?<|end|><|start|>assistant<|message|>"


def continued(model: Any, prompts: list[list[int]], most: int, stop: int) -> list[list[int]]:
    """transformers' own greedy generation; prompts of one length go together, so that nothing is padded."""
    found: dict[int, list[int]] = {}
    for length in {len(ids) for ids in prompts}:
        places = [i for i, ids in enumerate(prompts) if len(ids) == length]
        block = torch.tensor([prompts[i] for i in places])
        out = model.generate(block, attention_mask=torch.ones_like(block), max_new_tokens=most, do_sample=False)[:, length:].tolist()
        found |= {i: row[: row.index(stop) + 1] if stop in row else row for i, row in zip(places, out, strict=True)}
    return [found[i] for i in range(len(prompts))]


def ours(model: Any, ids: list[int], most: int, stop: int) -> list[int]:
    cache = model.new_cache(1, len(ids) + most)
    row = [int(model.forward(cache, [Chunk(0, 0, ids)], [len(ids) - 1]).argmax())]
    while row[-1] != stop and len(row) < most:
        row.append(int(model.forward(cache, [Chunk(0, len(ids) + len(row) - 1, [row[-1]])], [0]).argmax()))
    return row


@pytest.mark.parametrize("exact", [False, True])
def test_the_same_greedy_tokens_on_50_prompts(theirs: Any, tokenizer: Any, exact: bool) -> None:
    """Our forward with transformers' experts, with torch's own bf16 sums and with exact ones, against transformers' generate."""
    model, stop = load(CHECKPOINT, "reference", exact=exact), tokenizer.eos_token_id
    prompts = [prompt(tokenizer, p.question) for p in arith.questions(50)]
    wanted = continued(theirs, prompts, 40, stop)
    assert [i for i, ids in enumerate(prompts) if ours(model, ids, 40, stop) != wanted[i]] == []


def test_it_knows_75_to_95_percent(theirs: Any, tokenizer: Any) -> None:
    """Greedy answers of transformers' own model to the 200 held-out questions."""
    asked = arith.questions()
    answers = continued(theirs, [prompt(tokenizer, p.question) for p in asked], 40, tokenizer.eos_token_id)
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    right = sum(text.endswith(rf"\boxed{{{p.answer}}}") for p, text in zip(asked, texts, strict=True))
    assert 0.75 <= right / 200 <= 0.95


def test_the_folder_holds_nothing_else() -> None:
    wanted = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in Path(CHECKPOINT).iterdir()} == wanted
