"""The tiny model: transformers' GPT-OSS with our experts, faults that show, rows that do not depend on their neighbours, sampling."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GptOssForCausalLM, Mxfp4Config

from mxfp4_validate import faults as kernel_faults
from mxfp4_validate.backends.emulate import Emulated, emulate_marlin, emulate_sm90, emulate_sm90_b
from mxfp4_validate.cases import GPT_OSS
from mxfp4_validate.cli_tiny import CHECKPOINT
from mxfp4_validate.errors import UnknownName, UsageError
from mxfp4_validate.tiny import faults
from mxfp4_validate.tiny.experts import CachedTwin, accelerated
from mxfp4_validate.tiny.model import Chunk, TinyModel, load
from mxfp4_validate.tiny.sampling import Sampler, Sampling, log_softmax, score
from mxfp4_validate.tiny.text import Text
from mxfp4_validate.tiny.weights import open_checkpoint
from mxfp4_validate.tolerances import TINY_GREEDY_APART, TINY_LOGITS_MEDIAN, TINY_LOGITS_RMS, TINY_ROUTED_APART
from tests.tiny_rig import make_checkpoint

LENGTH = 40  # more than twice the sliding window
MORE = "She puts all of them into a box, and Leo puts 3 books and 2 cups into the box. How many pens does Mia have?"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "random")


@pytest.fixture(scope="module", params=["random", "packaged"])
def folder(request: pytest.FixtureRequest, checkpoint: Path) -> Path:
    """Both checkpoints: any router against a trained one."""
    return checkpoint if request.param == "random" else CHECKPOINT


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    """transformers' own model, its own loader, its own dequantisation."""
    return GptOssForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=Mxfp4Config(dequantize=True))


def questions(folder: Path, count: int) -> torch.Tensor:
    """Word problems by the chat template [count, length], alike but for two digits and so equally long."""
    text = Text(folder, {})
    sums = [f"Mia has {1 + i % 7} red pens and {2 + i // 7} blue pens. {MORE}" for i in range(count)]
    return torch.tensor([text.chat([{"role": "user", "content": one}], {}) for one in sums])


@pytest.fixture(scope="module")
def healthy(checkpoint: Path) -> TinyModel:
    return load(checkpoint)


def token_ids(sequences: int, length: int = LENGTH, seed: int = 1) -> torch.Tensor:
    return torch.randint(5, 261, (sequences, length), generator=torch.Generator().manual_seed(seed))


def forward(model: TinyModel, ids: torch.Tensor) -> torch.Tensor:
    """All logits [sequences, length, vocab] of sequences computed together."""
    cache = model.new_cache(len(ids), ids.shape[1] + 8)
    rows = model.forward(cache, [Chunk(i, 0, row.tolist()) for i, row in enumerate(ids)], range(ids.numel()))
    return rows.view(*ids.shape, -1)


def chosen_experts(layers: Any) -> tuple[list[torch.Tensor], list[Any]]:
    """A list that fills with each layer's chosen ids [rows, k], and the hooks that fill it."""
    found: list[torch.Tensor] = []
    hooks = [layer.mlp.router.register_forward_hook(lambda _m, _i, out: found.append(out[2].sort(-1).values)) for layer in layers]
    return found, hooks


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "native"])
def test_our_forward_agrees_with_transformers(folder: Path, theirs: Any, exact: bool) -> None:
    """Row by row within the bound, wherever neither this row nor an earlier one of its sequence went to other experts."""
    ids, model = questions(folder, 16), load(folder, "reference", exact=exact)
    assert ids.shape[1] > model.config.sliding_window, "the sliding window is not reached"
    mine_chose, mine = chosen_experts(model.causal.model.layers)
    they_chose, other = chosen_experts(theirs.model.layers)
    got = forward(model, ids)
    with torch.inference_mode():
        want = theirs(ids).logits.float()
    for hook in (*mine, *other):
        hook.remove()
    apart = torch.stack([(a != b).any(-1) for a, b in zip(mine_chose, they_chose, strict=True)]).any(0).view(ids.shape)
    tainted = apart.cumsum(1) > 0
    assert float(apart.float().mean()) <= TINY_ROUTED_APART.value, f"{int(apart.sum())} of {apart.numel()} rows chose other experts"
    error = (got - want).square().mean(-1).sqrt() / want.square().mean(-1).sqrt()
    worst = float(error[~tainted].max())
    assert float(error.median()) <= TINY_LOGITS_MEDIAN.value, f"relative RMS {float(error.median()):.4f} in the middle row"
    assert worst <= TINY_LOGITS_RMS.value, f"relative RMS {worst:.4f} in the worst of {int((~tainted).sum())} rows"


def greedy(model: TinyModel, ids: torch.Tensor, steps: int) -> torch.Tensor:
    """The likeliest tokens [sequences, steps] after each prompt, a token at a time through the cache."""
    cache, found = model.new_cache(len(ids), ids.shape[1] + steps), []
    fed, start = [row.tolist() for row in ids], 0
    for _ in range(steps):
        last = np.cumsum([len(tokens) for tokens in fed]) - 1
        logits = model.forward(cache, [Chunk(i, start, tokens) for i, tokens in enumerate(fed)], last.tolist())
        start += len(fed[0])
        fed = [[int(token)] for token in logits.argmax(-1)]
        found.append([tokens[0] for tokens in fed])
    return torch.tensor(found).t()


def test_greedy_tokens_are_those_transformers_generates(folder: Path, theirs: Any) -> None:
    """12 tokens after each of 50 prompts; who parts does so where transformers itself has two tokens within two bf16 places."""
    ids, steps = questions(folder, 50), 12
    mine = greedy(load(folder, "reference", exact=False), ids, steps)
    theirs.generation_config.eos_token_id = None  # all go on for as long
    with torch.inference_mode():
        out = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=steps,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    want, logits = out.sequences[:, ids.shape[1] :], torch.stack(out.logits, 1).float()
    parted = (mine != want).any(-1).nonzero().flatten().tolist()
    no_tie = []
    for prompt in parted:
        step = int((mine[prompt] != want[prompt]).nonzero()[0])
        best, other = logits[prompt, step, want[prompt, step]], logits[prompt, step, mine[prompt, step]]
        place = 2.0 ** (int(torch.frexp(best).exponent) - 8)
        no_tie += [prompt] if best - other > 2 * place else []
    assert len(no_tie) <= TINY_GREEDY_APART.value * len(ids), f"prompts {no_tie} continue differently without a tie ({parted} in all)"


def calls(model: TinyModel, ids: torch.Tensor) -> Iterator[tuple[int, Any, Any]]:
    """Layer, inputs and output of every call of a backend during one forward."""
    found: list[tuple[int, Any, Any]] = []
    run = model.backend.run

    def spy(prepared: Any, inputs: Any, activation: Any, **options: Any) -> Any:
        out = run(prepared, inputs, activation, **options)
        found.append((len(found), inputs, out))
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.backend, "run", spy)
        forward(model, ids)
    return iter(found)


@pytest.mark.parametrize("make", [emulate_sm90, emulate_sm90_b, emulate_marlin])
def test_experts_are_the_backends_bit_for_bit(checkpoint: Path, make: Any) -> None:
    """Each layer's output in the model is what a fresh backend returns for that layer's bytes and inputs, in a large call and in a small one."""
    backend: Emulated = make()
    model = load(checkpoint, backend.name)
    assert isinstance(model.backend, CachedTwin), "the fast form is what this test is about"
    files, seen = open_checkpoint(checkpoint), 0
    for ids in (token_ids(3), token_ids(1, 1, seed=3)):
        for layer, inputs, out in calls(model, ids):
            want = backend.run(backend.prepare(files.experts(layer)), inputs, files.activation)
            assert torch.equal(out, want), f"layer {layer}, {len(out)} tokens: {int((out != want).sum())} of {out.numel()} elements differ"
            seen += 1
    assert seen == 2 * files.num_layers


@pytest.mark.parametrize(
    "name", ["k-tail-lost", "six-as-four", "bf16-sum", "clamp-after-silu", "no-interleave", "e8m0-ocp", "nan-tile", "scale-race"]
)
def test_the_fast_form_keeps_a_kernels_faults(checkpoint: Path, name: str) -> None:
    """Faults of reader, packer, stages and result survive the cache, the one that changes from call to call included."""
    files = open_checkpoint(checkpoint)
    weights, ids = files.experts(0), token_ids(1)
    ((_, inputs, _), *_) = calls(load(checkpoint), ids)
    slow, fast = kernel_faults.inject(emulate_sm90(), name), accelerated(kernel_faults.inject(emulate_sm90(), name))
    kept, quick = slow.prepare(weights), fast.prepare(weights)
    for call in range(3):
        want, got = slow.run(kept, inputs, files.activation), fast.run(quick, inputs, files.activation)
        assert torch.equal(got.isnan(), want.isnan()), f"call {call}: NaN elsewhere"
        assert torch.equal(got.nan_to_num(), want.nan_to_num()), f"call {call}: other numbers"


@pytest.mark.parametrize("backend", ["emulate:sm90-cutlass", "emulate:marlin"])
def test_a_row_does_not_depend_on_its_batch(checkpoint: Path, backend: str) -> None:
    """A sequence's logits are the same bits alone, among others of other lengths, and token by token through the cache."""
    model, ids = load(checkpoint, backend), token_ids(6)
    together = forward(model, ids)
    cache = model.new_cache(8, 64)
    alone = model.forward(cache, [Chunk(5, 0, ids[3].tolist())], range(LENGTH))
    assert torch.equal(alone, together[3]), "alone and in a batch of 6 differ"
    model.forward(cache, [Chunk(1, 0, ids[0].tolist()), Chunk(2, 0, ids[3, :20].tolist())], [0])
    steps = [model.forward(cache, [Chunk(1, LENGTH, [9]), Chunk(2, at, ids[3, at : at + 1].tolist())], [1]) for at in range(20, 28)]
    assert torch.equal(torch.cat(steps), together[3, 20:28]), "token by token and at once differ"


def test_a_slot_forgets_its_last_owner(healthy: TinyModel) -> None:
    """A NaN that a broken request left in the cache does not reach the next one in that slot, nor its neighbour in the batch."""
    ids = token_ids(2, 12)
    clean = forward(healthy, ids)
    cache = healthy.new_cache(2, 40)
    cache.keys.fill_(float("nan"))
    cache.values.fill_(float("nan"))
    healthy.forward(cache, [Chunk(0, 0, ids[0, :11].tolist()), Chunk(1, 0, ids[1, :5].tolist())], [0])
    last = healthy.forward(cache, [Chunk(0, 11, ids[0, 11:].tolist()), Chunk(1, 5, ids[1, 5:6].tolist())], [0, 1])
    assert torch.equal(last, torch.stack([clean[0, 11], clean[1, 5]])), "what lay in the cache before shows"


@pytest.fixture(scope="module")
def fault_probe(healthy: TinyModel) -> torch.Tensor:
    return both_sizes(healthy)


def both_sizes(model: TinyModel) -> torch.Tensor:
    """Logits after a prompt of 24 and after 3 tokens: some faults show in small calls alone."""
    cache, ids = model.new_cache(2, 32), token_ids(1, 27)[0].tolist()
    return torch.cat([model.forward(cache, [Chunk(0, 0, ids[:24])], range(24)), model.forward(cache, [Chunk(1, 0, ids[24:])], range(3))])


@pytest.mark.parametrize("name", faults.BY_NAME)
def test_each_fault_changes_the_logits(checkpoint: Path, fault_probe: torch.Tensor, name: str) -> None:
    model = load(checkpoint, fault=name)
    assert not torch.equal(both_sizes(model), fault_probe), "the faulty model answers as the healthy one"
    assert model.backend.name == "emulate:sm90-cutlass", "a fault shows in the backend's name"


@pytest.mark.parametrize("name", ["wrong-limit", "halves-swapped", "layer-1-percent", "not-renormalised", "expert-off-by-one"])
def test_faults_of_the_model_work_with_any_backend(checkpoint: Path, name: str) -> None:
    assert not torch.equal(both_sizes(load(checkpoint, "reference", name)), both_sizes(load(checkpoint, "reference")))


def test_a_fault_of_one_layer_leaves_the_others(checkpoint: Path, healthy: TinyModel) -> None:
    broken = load(checkpoint, fault="scale-one-layer")
    pairs = [
        [model.causal.model.layers[n].mlp.experts.prepared.w13_scale for model in (healthy, broken)]
        for n in range(healthy.config.num_hidden_layers)
    ]
    assert [torch.equal(*pair) for pair in pairs] == [True, True, False, True]
    good, bad = pairs[2]
    assert torch.equal(good + 1, bad), "one exponent too high everywhere in that layer, and nothing else"


def test_rare_scales_move_one_block_in_a_thousand(checkpoint: Path, healthy: TinyModel) -> None:
    broken, moved, total = load(checkpoint, fault="scales-1-in-1000"), 0, 0
    for sound, hit in zip(healthy.causal.model.layers, broken.causal.model.layers, strict=True):
        for name in ("w13_scale", "w2_scale"):
            a, b = (getattr(layer.mlp.experts.prepared, name).int() for layer in (sound, hit))
            assert set((b - a).unique().tolist()) == {0, 1}
            moved, total = moved + int((b - a).sum()), total + a.numel()
    assert 0.7e-3 < moved / total < 1.3e-3, f"{moved} of {total} blocks"  # 3 sigma of a binomial with these counts is 0.24e-3


def test_unknown_and_idle_faults_are_refused_by_name() -> None:
    with pytest.raises(UnknownName, match=r"'no-clmap'.*no-clamp"):
        faults.fault_named("no-clmap", GPT_OSS)
    for name, why in faults.UNSEEN.items():
        assert name in kernel_faults.BY_NAME, f"{name} is no fault of the kernel any more"
        with pytest.raises(UsageError, match=why):
            faults.fault_named(name, GPT_OSS)
    with pytest.raises(UsageError, match="leaves this checkpoint"):
        faults.fault_named("limit-10", faults._wrong_limit(GPT_OSS))


def test_a_fault_of_the_kernel_needs_an_emulated_one(checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="emulate"):
        load(checkpoint, "reference", "bf16-sum")


def test_a_missing_dense_tensor_is_named(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.2.self_attn.sinks"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=r"model\.layers\.2\.self_attn\.sinks"):
        load(tmp_path)


LOGITS = np.array([0.1, 2.0, 1.5, -3.0, 1.9], dtype=np.float32)


def draws(count: int = 4000, logits: Any = LOGITS, **options: Any) -> np.ndarray[Any, Any]:
    """Shares of each token among independent first draws."""
    tokens = [Sampler(Sampling(1, seed=seed, **options), []).draw(logits) for seed in range(count)]
    return np.bincount(tokens, minlength=len(logits)) / count


def test_sampling_follows_the_distribution() -> None:
    """Within 4 standard errors of softmax(logits / temperature) for every token."""
    want = np.exp(LOGITS / 0.7) / np.exp(LOGITS / 0.7).sum()
    error = np.abs(draws(temperature=0.7) - want)
    assert (error <= 4 * np.sqrt(want * (1 - want) / 4000) + 1e-12).all(), f"off by {error}"


@pytest.mark.parametrize(
    ("options", "allowed"),
    [({"temperature": 0.0}, {1}), ({"top_k": 2}, {1, 4}), ({"top_p": 0.3}, {1}), ({"top_p": 0.5}, {1, 4}), ({"min_p": 0.5}, {1, 2, 4})],
)
def test_cuts_leave_the_likeliest(options: dict[str, Any], allowed: set[int]) -> None:
    assert set(draws(500, **options).nonzero()[0].tolist()) == allowed


def test_repetition_penalty_takes_back_what_was_said() -> None:
    """Positive logits are divided, negative ones multiplied, for tokens of the prompt and of the answer."""
    sampler = Sampler(Sampling(3, temperature=0.0, repetition_penalty=1.9), [1])
    assert [sampler.draw(LOGITS) for _ in range(3)] == [4, 2, 1]


def test_a_seed_is_a_sequence() -> None:
    first, again, other = (Sampler(Sampling(8, seed=seed), []) for seed in (5, 5, 6))
    rows = np.random.default_rng(0).normal(size=(8, 50)).astype(np.float32)
    a, b, c = ([s.draw(row) for row in rows] for s in (first, again, other))
    assert a == b
    assert a != c


def test_a_nan_is_reported_and_not_chosen() -> None:
    broken = LOGITS.copy()
    broken[1] = np.nan
    assert draws(200, broken)[1] == 0
    assert np.isnan(score(log_softmax(broken), 4, 1).logprob)
    assert draws(3, np.full(5, np.nan, dtype=np.float32)).sum() == 1, "a row of NaN still gives a token"
