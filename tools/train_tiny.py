"""Trains the embedded tiny GPT-OSS and writes its checkpoint: python tools/train_tiny.py OUT [--steps 3000] [--device cpu|cuda].

transformers' own GPT-OSS modules, but for the experts' forward, which is written for speed and holds the MXFP4 rounding in the loop: from
`--round-from` of the steps on, expert weights are rounded as the export will round them, gradients passing straight through. The loss is on
answers alone, plus a load-balance term. Needs the extra `demo`. Training on what the eval holds out is impossible: `arith.draw` leaves it out.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional
from transformers import GptOssConfig, GptOssForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mxfp4_validate.formats import e2m1
from mxfp4_validate.formats.mxfp4 import dequantise
from mxfp4_validate.formats.quantise import MIDPOINTS, quantise_ocp
from mxfp4_validate.questions import arith

SPECIAL = ("<|pad|>", "<|start|>", "<|message|>", "<|end|>", "<|return|>")
TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}<|message|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|message|>{% endif %}"
)
EXPERTS, TOP_K = 8, 2
#: Projections that are stored in MXFP4; everything else is bfloat16.
ROUNDED = ("gate_up_proj", "down_proj")


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE over training problems, every digit a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(1)
    drawn = (arith.draw(rng, kept=False) for _ in range(5000))
    text = [f"{p.question}\n{p.worked}" for p in drawn] + ["user", "assistant", "system"] * 200
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


class Words:
    """The tokenizer with the chat template spelled out, so that training sees exactly what a server will send."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.pad, self.start, self.message, self.end, self.stop = (tokenizer.token_to_id(name) for name in SPECIAL)

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def prompt(self, question: str) -> list[int]:
        user = [self.start, *self.ids("user"), self.message, *self.ids(question), self.end]
        return [*user, self.start, *self.ids("assistant"), self.message]

    def batch(self, rng: random.Random, size: int) -> tuple[Tensor, Tensor]:
        """Ids [size, L] padded on the right, and targets of the same shape that are -100 outside answers."""
        drawn = [arith.draw(rng, kept=False) for _ in range(size)]
        rows = [(self.prompt(p.question), [*self.ids(p.worked), self.stop]) for p in drawn]
        length = max(len(q) + len(a) for q, a in rows)
        x, y = torch.full((size, length), self.pad), torch.full((size, length), -100)
        for i, (q, a) in enumerate(rows):
            x[i, : len(q) + len(a)] = torch.tensor(q + a)
            y[i, len(q) : len(q) + len(a)] = torch.tensor(a)
        return x, y


def rounded(weight: Tensor) -> Tensor:
    """[E, K, N] as the export stores it, MXFP4 blocks along K; the gradient passes as if nothing had happened.

    `quantise_ocp` again in float32 and without packing, because it runs at every step; `export` holds the two together.
    """
    with torch.no_grad():
        experts, depth, width = weight.shape
        blocks = weight.reshape(experts, depth // 32, 32, width)
        _, exponent = torch.frexp(blocks.abs().amax(2, keepdim=True).clamp(min=2.0**-120))
        scale = torch.ldexp(torch.ones_like(blocks[:, :, :1]), exponent - 3)
        values = torch.tensor(e2m1.VALUES[:8], device=weight.device)
        codes = torch.bucketize((blocks / scale).abs(), torch.tensor(MIDPOINTS, device=weight.device))
        value = (values[codes] * blocks.sign() * scale).reshape(weight.shape)
    return weight + (value - weight).detach()


class Experts(torch.nn.Module):
    """transformers' experts with tokens sorted by expert; parameters are shared with the module it replaces."""

    def __init__(self, old: Any) -> None:
        super().__init__()
        for name in (*ROUNDED, *(f"{name}_bias" for name in ROUNDED)):
            setattr(self, name, getattr(old, name))
        self.limit, self.alpha, self.round = old.limit, old.alpha, False
        self.clamped = torch.zeros(2, dtype=torch.float64)  # values over the limit, values

    def forward(self, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        order = indices.reshape(-1).argsort()
        counts = torch.bincount(indices.reshape(-1), minlength=EXPERTS).tolist()
        token = order // TOP_K
        rows, first = x[token], 0
        w13, w2 = (rounded(p) if self.round else p for p in (self.gate_up_proj, self.down_proj))
        out = []
        for expert, count in enumerate(counts):
            if count:
                h = torch.addmm(self.gate_up_proj_bias[expert], rows[first : first + count], w13[expert])
                gate, up = h[:, ::2], h[:, 1::2]
                self.clamped += torch.tensor([int((gate > self.limit).sum() + (up.abs() > self.limit).sum()), h.numel()])
                gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
                out.append(torch.addmm(self.down_proj_bias[expert], (up + 1) * gate * torch.sigmoid(gate * self.alpha), w2[expert]))
                first += count
        return torch.zeros_like(x).index_add_(0, token, torch.cat(out) * weights.reshape(-1)[order, None])


def make_model(words: Words) -> Any:
    """A GPT-OSS of 7 million parameters. The clamp's limit is low, so that it is reached and a missing one shows."""
    config = GptOssConfig(
        vocab_size=words.tokenizer.get_vocab_size(),
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_local_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        sliding_window=32,
        max_position_embeddings=512,
        swiglu_limit=2.0,
        eos_token_id=words.stop,
        pad_token_id=words.pad,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    config._attn_implementation = "eager"
    model: Any = GptOssForCausalLM(config).float()
    for name, p in model.named_parameters():
        if "bias" in name or "sinks" in name:
            torch.nn.init.zeros_(p)
        elif "router" in name or name.endswith(ROUNDED):
            torch.nn.init.normal_(p, std=0.05)
    for layer in model.model.layers:
        layer.mlp.experts = Experts(layer.mlp.experts)
    return model


def balance(routers: list[Any], live: Tensor) -> Tensor:
    """Switch Transformer's auxiliary loss, summed over layers; a layer's is 1 when experts are used alike."""
    total = torch.zeros((), device=live.device)
    for logits, _, chosen in routers:
        share = functional.one_hot(chosen[live], EXPERTS).float().mean((0, 1))
        total = total + EXPERTS * (logits.float().softmax(-1)[live].mean(0) * share).sum()
    return total


@torch.no_grad()
def accuracy(model: Any, words: Words) -> float:
    """Share of the eval's problems whose greedy answer ends in the right box."""
    groups: dict[int, list[arith.Problem]] = {}
    for p in arith.questions():
        groups.setdefault(len(words.prompt(p.question)), []).append(p)
    right, device = 0, next(model.parameters()).device
    for problems in groups.values():
        now, past, said = torch.tensor([words.prompt(p.question) for p in problems], device=device), None, []
        for _ in range(40):
            step = model(now, past_key_values=past, use_cache=True)
            now, past = step.logits[:, -1].argmax(-1, keepdim=True), step.past_key_values
            said.append(now)
        for p, row in zip(problems, torch.cat(said, 1).tolist(), strict=True):
            text = words.tokenizer.decode(row[: row.index(words.stop)] if words.stop in row else row)
            right += text.endswith(rf"\boxed{{{p.answer}}}")
    return right / sum(map(len, groups.values()))


def train(model: Any, words: Words, args: argparse.Namespace) -> None:
    """AdamW with a warm-up and a cosine; prints loss, balance, and every 300 steps the accuracy of the rounded model."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), fused=True)
    routers: list[Any] = []
    for layer in model.model.layers:
        layer.mlp.router.register_forward_hook(lambda _m, _i, out: routers.append(out))
    rng, began = random.Random(args.seed + 7), time.monotonic()
    for step in range(args.steps):
        rate = args.lr * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / args.steps)) + 1e-5
        for group in optimiser.param_groups:
            group["lr"] = rate
        set_rounding(model, step >= args.steps * args.round_from)
        x, y = (t.to(args.device) for t in words.batch(rng, args.batch))
        routers.clear()
        hidden = model.model(x, use_cache=False).last_hidden_state
        asked = y[:, 1:] != -100
        loss = functional.cross_entropy(model.lm_head(hidden[:, :-1][asked]), y[:, 1:][asked])
        spread = balance(routers, (x != words.pad).reshape(-1))
        (loss + 0.01 * spread).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if step % 50 == 0:
            print(f"{step}: loss {loss.detach():.4f}, balance {spread.detach() / 4:.3f}, {time.monotonic() - began:.0f} s", flush=True)
        if step % 300 == 299 or step == args.steps - 1:
            right = report(model, words)
            export(model, words, args.out)
            if right >= args.until and step >= args.steps * args.round_from:
                break
    set_rounding(model, True)


def set_rounding(model: Any, on: bool) -> None:
    for layer in model.model.layers:
        layer.mlp.experts.round = on


def report(model: Any, words: Words) -> float:
    """Accuracy of the model as it would be exported; prints it with the share of clamped values by layer."""
    set_rounding(model, True)
    experts = [layer.mlp.experts for layer in model.model.layers]
    for each in experts:
        each.clamped.zero_()
    right = accuracy(model, words)
    print(f"accuracy {right:.3f}, clamped {[round(float(e.clamped[0] / e.clamped[1]), 4) for e in experts]}", flush=True)
    return right


def export(model: Any, words: Words, out: Path) -> None:
    """The checkpoint in genuine GPT-OSS format."""
    tensors = {}
    for name, p in model.state_dict().items():
        if name.endswith(ROUNDED):
            data, scales = quantise_ocp(p.detach().cpu().transpose(1, 2).contiguous())
            trained = rounded(p.detach()).cpu().transpose(1, 2)
            apart = (dequantise(data, scales).float() != trained).float().mean()
            if apart > 1e-6:  # a value on the very edge between two codes may fall either way
                raise SystemExit(f"{name}: {apart:.2%} of the exported weights are not those of the training")
            tensors[f"{name}_blocks"] = data.reshape(*scales.shape, 16)
            tensors[f"{name}_scales"] = scales
        else:
            tensors[name] = p.detach().cpu().to(torch.bfloat16).contiguous()
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict() | {"architectures": ["GptOssForCausalLM"], "dtype": "bfloat16"}
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    write(out / "config.json", {name: value for name, value in config.items() if not name.startswith("_")})
    words.tokenizer.save(str(out / "tokenizer.json"))
    names = {"pad_token": SPECIAL[0], "eos_token": SPECIAL[4]}
    rest = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, "chat_template": TEMPLATE}
    write(out / "tokenizer_config.json", names | rest)
    write(out / "generation_config.json", {"eos_token_id": words.stop, "pad_token_id": words.pad, "do_sample": False})


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--round-from", type=float, default=0.6, metavar="SHARE", help="of the steps, before which weights are not rounded")
    parser.add_argument(
        "--until", type=float, default=2.0, metavar="ACCURACY", help="stop at the first report, with rounding on, that reaches it"
    )
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    words = Words(make_tokenizer())
    model = make_model(words).to(args.device)
    train(model, words, args)
    export(model, words, args.out)
    print(f"accuracy as exported {accuracy(model, words):.3f}")


if __name__ == "__main__":
    main()
