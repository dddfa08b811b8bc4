"""What `corpus`, `diverge`, `calibrate` and `first-divergence` may be told on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_corpus_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("server", metavar="URL", help="the baseline, a server with SGLang's /generate and /tokenize")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="a new file")
    parser.add_argument("--eval", default="aime25", help="whose questions are asked (%(default)s)")
    parser.add_argument("--questions", type=Path, metavar="FILE", help="a local file of them")
    parser.add_argument("--sequences", type=int, default=256, help="answers to sample (%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=512, help="tokens an answer at most (%(default)s)")
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="(%(default)s); at 1 the chosen tokens alone estimate the KL without bias"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--score-prompts", action="store_true", help="score the prompts' tokens as well")
    _asking(parser)


def add_diverge_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("baseline", metavar="BASELINE_URL")
    parser.add_argument("candidate", metavar="CANDIDATE_URL")
    _comparing(parser)
    parser.add_argument(
        "--width", type=int, default=512, help="positions a request: with a prefix cache the tokens of a forward (%(default)s)"
    )
    parser.add_argument(
        "--regimes", action="store_true", help="instead of --width: 8, 64, 512 and 8 x 512 tokens a forward, a record and a row each"
    )
    parser.add_argument("--calibration", type=Path, metavar="FILE", help="r0 and tail factor measured on this very server")
    parser.add_argument("--out", type=Path, default=Path("mxfp4-runs/divergence"), metavar="DIR", help="the record's folder (%(default)s)")
    _asking(parser)


def _asking(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="its name, where a server has several")
    parser.add_argument("--concurrency", type=int, default=8, help="requests in flight (%(default)s)")
    parser.add_argument("--deadline", type=float, default=600.0, metavar="S", help="seconds a request may take (%(default)s)")


def add_calibrate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("baseline", metavar="BASELINE_URL")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="a new file, for `diverge --calibration`")
    _comparing(parser)
    parser.add_argument("--width", type=int, default=512, help="positions a request, as `diverge` will be told (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("mxfp4-runs/calibration"), metavar="DIR", help="the record's folder (%(default)s)")
    _asking(parser)


def add_first_divergence_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("baseline", metavar="BASELINE_URL")
    parser.add_argument("candidate", metavar="CANDIDATE_URL")
    parser.add_argument("--corpus", type=Path, required=True, metavar="FILE", help="whose prompts are answered greedily")
    parser.add_argument("--floor", metavar="URL", help="another boot of the baseline (the baseline itself)")
    parser.add_argument("--declared", metavar="URL", help="another backend that is accepted, for a baseline that hardly ever leaves itself")
    parser.add_argument(
        "--prompt-tokens", type=int, metavar="N", help="the first N tokens of each sequence are the prompt (those not scored)"
    )
    parser.add_argument("--max-tokens", type=int, default=512, help="tokens an answer at most (%(default)s)")
    _asking(parser)


def _comparing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--corpus", type=Path, required=True, metavar="FILE", help="what `corpus` made")
    parser.add_argument(
        "--floor", action="append", metavar="URL", help="another boot of the baseline for A/A; repeatable (the baseline itself)"
    )
    parser.add_argument(
        "--declared", action="append", default=[], metavar="URL",
        help="another backend that is accepted, the floor of a baseline that repeats its own bits; repeatable",
    )  # fmt: skip
    parser.add_argument("--protocol", default="sglang", help="sglang, vllm or openai (%(default)s)")
