"""The verbs `serve` and `localise` on the command line; the model and its libraries are imported only when they run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mxfp4_validate.errors import UsageError

CHECKPOINT = Path(__file__).resolve().parent / "tiny" / "checkpoint"


def add_verbs(verbs: Any) -> None:
    """Add the parser to argparse's subparsers."""
    about = "serve the tiny GPT-OSS with its experts on any backend, healthy or with a deliberate fault"
    sub = verbs.add_parser("serve", help=about, description=about, allow_abbrev=False)
    sub.set_defaults(verb=_serve)
    sub.add_argument("what", choices=("tiny",), help="the only server there is")
    sub.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    sub.add_argument("--port", type=int, default=0, help="0 takes a free one and prints it (%(default)s)")
    sub.add_argument(
        "--backend", default="emulate:sm90-cutlass", metavar="NAME", help="a backend, 'reference', or pkg.mod:factory (%(default)s)"
    )
    sub.add_argument("--fault", metavar="NAME", help="break it on purpose; nothing the server answers names the fault")
    sub.add_argument("--list-faults", action="store_true", help="print the faults and end")
    sub.add_argument("--model", type=Path, default=CHECKPOINT, metavar="DIR", help="a GPT-OSS checkpoint (the one in the package)")
    sub.add_argument("--served-model-name", default="tiny-gpt-oss", metavar="NAME", help="its name in /v1/models (%(default)s)")
    sub.add_argument(
        "--context-length", type=int, metavar="N", help="tokens of prompt and answer together (the checkpoint's, at most 1024)"
    )
    sub.add_argument("--max-running", type=int, default=32, metavar="N", help="requests computed together (%(default)s)")
    sub.add_argument("--max-batch-tokens", type=int, default=4096, metavar="N", help="prompt tokens admitted a step (%(default)s)")
    sub.add_argument("--threads", type=int, default=1, metavar="N", help="of the CPU, for torch (%(default)s)")
    sub.add_argument(
        "--dense", choices=("exact", "native"), default="exact", help="sums around the experts: float64, or torch's own bf16 (%(default)s)"
    )
    about = "find the first MoE layer of a model that leaves its oracles, and which one"
    sub = verbs.add_parser("localise", help=about, description=about, allow_abbrev=False)
    sub.set_defaults(verb=_localise)
    sub.add_argument("--model", type=Path, default=CHECKPOINT, metavar="DIR", help="a GPT-OSS checkpoint (the one in the package)")
    sub.add_argument("--backend", default="sm90-cutlass", metavar="NAME", help="the candidate's experts (%(default)s)")
    sub.add_argument(
        "--baseline", default="emulate:sm90-cutlass", metavar="NAME", help="whose activations every layer is given (%(default)s)"
    )
    sub.add_argument("--fault", metavar="NAME", help="break the candidate on purpose (serve tiny --list-faults)")
    sub.add_argument("--sequences", type=int, default=16, metavar="N", help="of the model's own answers, 32 tokens each (%(default)s)")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="of the sequences (%(default)s)")
    sub.add_argument("--json", action="store_true", help="one object on stdout")


def _localise(args: argparse.Namespace, _rest: list[str]) -> int:
    if args.sequences < 1:
        raise UsageError(f"--sequences {args.sequences} must be at least 1")
    try:
        from mxfp4_validate.tiny import localise
        from mxfp4_validate.tiny.model import TinyModel
        from mxfp4_validate.tiny.scoring import own_corpus
        from mxfp4_validate.tiny.weights import open_checkpoint
    except ImportError as error:
        raise UsageError(f"localise needs {error.name}; run: pip install 'mxfp4-validate[demo]'") from error
    checkpoint = open_checkpoint(args.model)
    baseline, candidate = TinyModel(checkpoint, args.baseline), TinyModel(checkpoint, args.backend, args.fault)
    corpus = own_corpus(baseline, args.model, args.sequences, args.seed, most=32)
    findings = localise.localise(checkpoint, baseline, candidate, args.backend, [s.tokens for s in corpus.sequences])
    first = next((f for f in findings if f.wrong), None)
    if args.json:
        rows = [vars(f) for f in findings]
        print(
            json.dumps({"status": int(first is not None), "first": first and first.layer, "oracle": first and first.wrong, "layers": rows})
        )
    else:
        print("\n".join(localise.table(findings)))
    return int(first is not None)


def _serve(args: argparse.Namespace, _rest: list[str]) -> int:
    for name in ("max_running", "max_batch_tokens", "context_length", "threads"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(args, name)} must be at least 1")
    try:
        from mxfp4_validate.tiny import faults, server
    except ImportError as error:
        raise UsageError(f"the tiny server needs {error.name}; run: pip install 'mxfp4-validate[demo]'") from error
    if args.list_faults:
        for fault in faults.BY_NAME.values():
            print(f"{fault.name:<24} {'emulate:*' if fault.kernel else 'any':<10} {fault.what}")
        return 0
    settings = server.Settings(
        args.model,
        args.backend,
        args.fault,
        args.served_model_name,
        args.dense == "exact",
        args.context_length,
        args.max_running,
        args.max_batch_tokens,
    )
    return server.serve(settings, args.host, args.port, args.threads)
