"""The verb `checkpoint`: the audit of a folder on the terminal or as JSON. torch is imported only when it runs."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

_ABOUT = "audit a checkpoint's MXFP4 experts: shapes, dtypes, missing and extra tensors, scale bytes, hash tables, TP shards"
#: Findings shown on a terminal; --json has them all.
_SHOWN = 40


def add_checkpoint(subparsers: Any) -> None:
    """Add the verb's parser to argparse's subparsers."""
    sub = subparsers.add_parser("checkpoint", help=_ABOUT, description=_ABOUT, allow_abbrev=False)
    sub.set_defaults(verb=_checkpoint)
    sub.add_argument("folder", type=Path, metavar="DIR", help="the folder with config.json and the .safetensors files")
    sub.add_argument("--json", action="store_true", help="one object on stdout, messages on stderr")


def _checkpoint(args: argparse.Namespace, _rest: list[str]) -> int:
    """0 if there is no error, 1 if there is one; what cannot be read at all raises `CheckpointError`, exit code 2."""
    from mxfp4_validate.checkpoints.audit import ERROR, audit, summary
    from mxfp4_validate.checkpoints.reader import open_checkpoint

    checkpoint = open_checkpoint(args.folder)
    findings = sorted(audit(checkpoint), key=lambda f: (f.severity != ERROR, -1 if f.layer is None else f.layer))
    errors = sum(finding.severity == ERROR for finding in findings)
    about, status = summary(checkpoint), int(errors > 0)
    if args.json:
        counts = {"errors": errors, "warnings": len(findings) - errors, "exit_status": status}
        print(json.dumps({"verb": "checkpoint", **counts, "checkpoint": about, "findings": [asdict(f) for f in findings]}, allow_nan=False))
        return status
    print(
        f"{about['name']}: {about['format']}, {about['num_layers']} layers of {about['num_experts']} experts, H={about['hidden_size']} "
        f"I={about['intermediate_size']} top_k={about['top_k']}; {about['tensors']} tensors in {about['files']} files"
    )
    for finding in findings[:_SHOWN]:
        layer = "model" if finding.layer is None else f"layer {finding.layer}"
        where = " ".join(filter(None, (finding.tensor, f"({finding.file})" if finding.file else "")))
        print(f"{finding.severity.upper():<8} {layer}: {where}: {finding.message}")
    if len(findings) > _SHOWN:
        print(f"... and {len(findings) - _SHOWN} more; --json lists them all")
    print(f"{errors} errors, {len(findings) - errors} warnings")
    return status
