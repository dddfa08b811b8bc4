"""Every check there is: a name, what it proves, the function that does it, and the cases it runs on. No torch here.

A check's function lives in `mxfp4_validate/checks/` and has the signature `(Context, MoeCase) -> dict[str, object]`: it returns
the metrics it measured and raises `CheckFailed` when bits are wrong. `items` turns the catalogue into the items of one backend.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mxfp4_validate.cases import SHAPES, TOKEN_COUNTS, MoeCase, MoeShape, Routing


@dataclass(frozen=True)
class Check:
    """One thing that is asserted. `target` is `module:function` under `mxfp4_validate.checks`."""

    name: str
    family: str  # one of FAMILIES
    proves: str
    target: str
    cpu_cases: tuple[MoeCase, ...]
    cuda_cases: tuple[MoeCase, ...]
    deadline_s: float = 120.0


@dataclass(frozen=True)
class Item:
    """A check on a case: what one pytest item runs."""

    check: Check
    case: MoeCase

    @property
    def item_id(self) -> str:
        return f"{self.check.name}-{self.case.case_id}"


FAMILIES = ("layout", "probe", "random", "determinism", "metamorphic", "parallel", "poison", "checkpoint")


def _cases(*names: str, tokens: tuple[int, ...], routing: Routing = Routing.RANDOM) -> tuple[MoeCase, ...]:
    return tuple(MoeCase(SHAPES[name], m, routing) for name in names for m in tokens)


_MINI = ("gpt-oss-mini", "dsv4-mini")
_FULL = ("gpt-oss-20b", "dsv4-flash")
_CPU_TOKENS = (1, 2, 3, 7, 16, 17, 65)
#: A CPU twin of thousands of rows would take minutes and add nothing: the row loop is the same.
_CPU = _cases(*_MINI, tokens=_CPU_TOKENS)
_SPECIAL = tuple(
    case
    for routing in (Routing.EMPTY, Routing.ONE, Routing.ZERO_WEIGHT, Routing.FOREIGN)
    for case in _cases(*_FULL, tokens=(3, 129, 1024), routing=routing)
    if routing is not Routing.EMPTY or case.shape.num_experts >= 3 * case.shape.top_k - 2
)
_CPU_SPECIAL = tuple(
    case for routing in (Routing.ONE, Routing.ZERO_WEIGHT, Routing.FOREIGN) for case in _cases(*_MINI, tokens=(3, 33), routing=routing)
) + _cases("dsv4-mini", tokens=(17,), routing=Routing.EMPTY)
_RANDOM_CUDA = (
    *_cases(*_FULL, tokens=TOKEN_COUNTS),
    *_SPECIAL,
    *_cases("gpt-oss-120b", "dsv4-pro", tokens=(1, 17, 129, 1024)),
    *_cases(*_MINI, tokens=(1, 17, 256)),
    *_cases("silu-mini", "gpt-oss-even", tokens=(1, 17, 256)),
)
_ONE_CPU = _cases(*_MINI, tokens=(17,))


def _probe(name: str, proves: str) -> Check:
    return Check(
        f"probe-{name}", "probe", proves, f"probes:{name}", _CPU, _cases(*_MINI, tokens=TOKEN_COUNTS) + _cases(*_FULL, tokens=(17,))
    )


def _relation(name: str, proves: str) -> Check:
    cuda = _cases(*_FULL, tokens=(129,)) + _cases(*_MINI, tokens=(17, 1024))
    return Check(name.replace("_", "-"), "metamorphic", proves, f"metamorphic:{name}", _ONE_CPU, cuda)


def _parallel(name: str, proves: str, routing: Routing = Routing.RANDOM) -> Check:
    cpu, cuda = _cases(*_MINI, tokens=(9,), routing=routing), _cases(*_FULL, tokens=(64,), routing=routing)
    return Check(name.replace("_", "-"), "parallel", proves, f"parallel:{name}", cpu, cuda)


CHECKS: tuple[Check, ...] = (
    Check(
        "bytes",
        "layout",
        "prepared bytes are the bijection of the canonical ones, pads are zero, nothing is lost",
        "layout:round_trip",
        _cases(*_MINI, tokens=(1,)),
        _cases(*_FULL, tokens=(1,)),
    ),
    Check(
        "vendor-pack", "layout", "our packer's bytes equal the vendor helper's", "layout:vendor", (), _cases(*_FULL, *_MINI, tokens=(1,))
    ),
    _probe("b1", "every fc1 code, scale and bias; beta"),
    _probe("b2", "every fc2 code, scale and bias; routing and slots"),
    _probe("s1", "GPT-OSS's clamp on gate, beta"),
    _probe("s2", "both clamp sides, bias before and beta after the clamp"),
    _probe("d1", "DeepSeek-V4's activation without biases"),
    _probe("a1", "the same bits in every backend: nothing rounds from end to end"),
    Check(
        "readout-fc1",
        "probe",
        "the kernel's view of every w13 code and scale byte",
        "readout:fc1",
        _cases(*_MINI, tokens=(1,)),
        _cases(*_FULL, *_MINI, tokens=(1,)),
        240.0,
    ),
    Check(
        "readout-fc2",
        "probe",
        "the kernel's view of every w2 code and scale byte",
        "readout:fc2",
        _cases(*_MINI, tokens=(1,)),
        _cases(*_FULL, *_MINI, tokens=(1,)),
        240.0,
    ),
    Check(
        "coverage",
        "random",
        "the random data visits codes, scales, clamps and routings",
        "random:coverage",
        _cases(*_MINI, tokens=(17,)),
        _cases(*_FULL, tokens=(129,)) + _SPECIAL,
    ),
    Check(
        "twin",
        "random",
        "outputs equal the ordered twin's bits or are explained one by one",
        "random:twin",
        _CPU + _CPU_SPECIAL + _cases("silu-mini", "gpt-oss-even", tokens=(17,)),
        _RANDOM_CUDA,
    ),
    Check(
        "routed-scale",
        "random",
        "shared expert and routed_scaling_factor, inside the weights and after them",
        "shared:routed_scale",
        _cases("dsv4-mini", tokens=(17,)),
        _cases("dsv4-flash", tokens=(17, 129)) + _cases("dsv4-mini", tokens=(17,)),
    ),
    Check(
        "repeat",
        "determinism",
        "identical calls return identical bits, per tactic group",
        "determinism:repeat",
        _cases("dsv4-mini", tokens=(17,)),
        _cases("dsv4-race", tokens=(8192,)) + _cases("gpt-oss-20b", tokens=(64,)),
        300.0,
    ),
    Check(
        "tactics",
        "determinism",
        "every tactic is explained, and equal within one summation order",
        "determinism:tactics",
        _ONE_CPU,
        _cases(*_FULL, tokens=(1, 65, 1024)),
        240.0,
    ),
    Check(
        "tuned",
        "determinism",
        "what the autotuner picks is explained and equals the forced tactic",
        "determinism:tuned",
        _ONE_CPU,
        _cases("gpt-oss-20b", tokens=(16, 1024)) + _cases("dsv4-mini", tokens=(16,)),
        240.0,
    ),
    _relation("token_permutation", "rows do not depend on their place"),
    _relation("single_row", "rows do not depend on the batch"),
    _relation("expert_permutation", "experts do not depend on their place"),
    _relation("slot_permutation", "slots do not depend on their order, on exact sums"),
    _relation("scale_shift", "scales are powers of two, applied once"),
    _relation("sign_flip", "signs are signs"),
    _parallel("tp2", "TP=2 partials and their sum"),
    _parallel("tp4", "TP=4, with shards that fall off a 128 boundary"),
    _parallel("tp8", "TP=8, the last rank short"),
    _parallel("tp_bias_once", "the second bias counts once under TP"),
    _parallel("ep2", "EP=2 with -1 and foreign ids", Routing.FOREIGN),
    _parallel("ep4", "EP=4 with -1 and foreign ids", Routing.FOREIGN),
    _parallel("no_local_expert", "tokens without a local expert get zeros"),
    Check(
        "pads", "poison", "pads and tails are written: fresh memory is NaN and 0xFF", "poison:pads", _ONE_CPU, _cases(*_FULL, tokens=(17,))
    ),
    Check(
        "unused-experts",
        "poison",
        "experts without tokens are not read",
        "poison:unused_experts",
        _cases("dsv4-mini", tokens=(17,), routing=Routing.EMPTY),
        _cases("gpt-oss-20b", tokens=(3, 1024), routing=Routing.EMPTY) + _cases("dsv4-flash", tokens=(3, 1024), routing=Routing.EMPTY),
    ),
    Check(
        "zero-weight",
        "poison",
        "slots of weight 0 add nothing",
        "poison:zero_weight",
        _cases(*_MINI, tokens=(33,), routing=Routing.ZERO_WEIGHT),
        _cases(*_FULL, tokens=(129,), routing=Routing.ZERO_WEIGHT),
    ),
    Check(
        "scale-codes",
        "poison",
        "scale bytes 0, 1, 254 and 255 mean what the backend declares",
        "poison:scale_codes",
        _cases("dsv4-mini", tokens=(3,)),
        _cases("dsv4-mini", tokens=(3,)),
    ),
)


def checkpoint_checks(shapes: Sequence[MoeShape]) -> tuple[Check, ...]:
    """The checks of `--checkpoint`, which take the place of `CHECKS`: the layers as shapes, small batches, a deadline for production sizes.

    Reading back every byte of a production layer takes a CPU hours, so there only a GPU does it.
    """
    once = tuple(MoeCase(shape, 1) for shape in shapes)
    small = tuple(case for case in once if not case.shape.production)
    batches = tuple(MoeCase(shape, m) for shape in shapes for m in (1, 16, 65))

    def check(name: str, proves: str, target: str, cpu: tuple[MoeCase, ...], cuda: tuple[MoeCase, ...]) -> Check:
        return Check(f"checkpoint-{name}", "checkpoint", proves, target, cpu, cuda, 600.0)

    return (
        check("bytes", "prepared bytes of real weights are the bijection of the file's", "layout:round_trip", once, once),
        check("readout-fc1", "the kernel's view of every real w13 code and scale byte", "readout:fc1", small, once),
        check("readout-fc2", "the kernel's view of every real w2 code and scale byte", "readout:fc2", small, once),
        check("probe-b1", "real fc1 gives the certified bits", "checkpoint:probe_b1", batches, batches),
        check("probe-b2", "real fc2 gives the certified bits", "checkpoint:probe_b2", batches, batches),
        check("twin", "outputs of real weights equal the ordered twin's bits or are explained", "random:twin", batches, batches),
    )


def items(device: str, checks: Iterable[Check] = CHECKS) -> list[Item]:
    """What a backend on `device` ("cpu" or "cuda") is put through, shapes together so that a layer is built once; tuning, the slowest, last."""
    found = [Item(check, case) for check in checks for case in (check.cuda_cases if device == "cuda" else check.cpu_cases)]
    return sorted(found, key=lambda item: (item.check.name == "tuned", item.case.shape.production, item.case.shape.name))
