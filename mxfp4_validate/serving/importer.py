"""A run folder of sgl-eval (the shape of 0.1.3) as a run of ours: texts are graded again, failed requests become missing samples."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mxfp4_validate import evalspec, states
from mxfp4_validate.endpoint.attempt import Attempt, Reply
from mxfp4_validate.endpoint.response import FINISH_REASONS
from mxfp4_validate.endpoint.state import state_of
from mxfp4_validate.errors import UsageError
from mxfp4_validate.evalspec import EvalSpec, Sampling
from mxfp4_validate.grading import grade
from mxfp4_validate.prompts.profiles import profile as profile_named
from mxfp4_validate.questions.base import Question, QuestionSet
from mxfp4_validate.questions.canonical import question
from mxfp4_validate.records.durable import plain
from mxfp4_validate.records.evals import EvalStore, run_file
from mxfp4_validate.records.sample import Sample
from mxfp4_validate.records.store import now
from mxfp4_validate.serving.lock import check_folder
from mxfp4_validate.serving.planned import plan_run

_EVALS = {"gsm8k": "gsm8k", "gpqa": "gpqa_diamond", "aime25": "aime25"}
#: Largest prediction file that is read.
_MOST = 4 << 30


def import_sgl_eval(folder: Path, out: Path, name: str | None = None, max_tokens: int | None = None) -> Path:
    """The run's new file. What sgl-eval scored 0 for a failed request is `server_error` here and not scored.

    Raises:
        UsageError: no metrics.json and output-rs*.jsonl there, an eval that is not ours, multiple choice (its rows hold no options), or no cap known.
    """
    meta = _meta(folder)
    suite = name or _EVALS.get(str(meta.get("name")), "")
    spec = evalspec.load(suite) if suite else None
    if spec is None:
        raise UsageError(f"{folder}: metrics.json is of eval {meta.get('name')!r}; give --eval, one of {', '.join(evalspec.names())}")
    if spec.grader == "gpqa":
        raise UsageError(
            f"{folder}: multiple-choice rows of sgl-eval hold no options, so they cannot be paired; run the eval with --profile sgl-eval"
        )
    spec = _sampling(spec, meta, max_tokens, folder)
    files = sorted(folder.glob("output-rs*.jsonl"), key=lambda path: int(path.stem.removeprefix("output-rs")))
    if not files:
        raise UsageError(f"{folder}: no output-rs*.jsonl; sgl-eval writes them with --dump-predictions")
    rows = [
        (repeat, question({"question": row.get("problem", ""), "answer": row.get("expected_answer")}, spec.grader, where), row)
        for repeat, path in enumerate(files)
        for where, row in _rows(path)
    ]
    questions: dict[str, Question] = {asked.id: asked for _, asked, _ in rows}
    found = QuestionSet(spec.name, tuple(questions.values()), f"sgl-eval run {folder.name}")
    planned = plan_run(
        spec, replace(profile_named("default"), name="sgl-eval import", grader="sgl-eval"), found, len(files), {"imported": meta}
    )
    check_folder(out)
    store = EvalStore.create(
        run_file(out), spec.name, len(files), planned.rows, planned.settings, planned.fingerprint, {"imported_from": "sgl-eval"}
    )
    boot = f"imported-{folder.name}"[:40]  # the folder's name holds the second it was made
    with store:
        store.add_boot(
            boot,
            str(meta.get("base_url", "")),
            {"model": str(meta.get("model", "")), "sgl_eval": str(meta.get("sgl_eval_version", ""))},
        )
        for repeat, asked, row in rows:
            sample, grades = _sample(spec, repeat, asked, row, boot)
            store.add([(sample, (), grades)], planned.fingerprint["grader_version"])
        store.finish(0)
    return run_file(out)


def _meta(folder: Path) -> dict[str, Any]:
    try:
        data = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder}: no readable metrics.json of sgl-eval: {error}") from error
    if not isinstance(data, dict) or "aggregate" not in data:
        raise UsageError(f"{folder}: metrics.json is not of the shape sgl-eval 0.1.3 writes")
    return {key: data[key] for key in ("name", "model", "base_url", "gen", "n_repeats", "sgl_eval_version", "partial") if key in data}


def _sampling(spec: EvalSpec, meta: dict[str, Any], max_tokens: int | None, folder: Path) -> EvalSpec:
    gen = meta.get("gen") or {}
    cap = max_tokens or gen.get("max_tokens")
    if not cap:
        raise UsageError(f"{folder}: the run left the cap to the server; give it as --max-tokens")
    thinking = (gen.get("chat_template_kwargs") or {}).get("thinking")
    values = {k: gen[k] for k in ("temperature", "top_p", "min_p", "repetition_penalty") if gen.get(k) is not None}
    return replace(
        spec,
        sampling=Sampling(
            **values, max_tokens=int(cap), seed=int(gen.get("seed") or 0), thinking=thinking, effort=gen.get("reasoning_effort")
        ),
    )


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.stat().st_size > _MOST:
        raise UsageError(f"{path}: {path.stat().st_size} bytes, at most {_MOST} are read")
    lines = path.read_text(encoding="utf-8", errors="surrogatepass").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # the torn last line of a killed run
                return
            raise UsageError(f"{path} line {number}: {error}") from error
        yield f"{path.name} line {number}", row


def _sample(spec: EvalSpec, repeat: int, asked: Question, row: dict[str, Any], boot: str) -> tuple[Sample, dict[str, Any]]:
    text, reason = row.get("generation") or "", row.get("finish_reason") or ""
    tokens = row.get("num_generated_tokens") or None  # sgl-eval writes 0 for "not reported"
    known = reason in FINISH_REASONS and reason != "abort"
    reply = Reply(text, row.get("reasoning_content") or "", reason, None, tokens, row.get("num_reasoning_tokens") or None, "")
    attempt = (
        Attempt("ok", reply)
        if known or (reason == "" and text)
        else Attempt(states.SERVER_ERROR, error=f"sgl-eval noted {reason!r} and kept no answer")
    )
    grades = {mode: grade(spec.grader, text, asked.gold, mode=mode) for mode in ("sgl-eval", "lenient", "strict")} if attempt.ok else {}
    state = state_of(attempt, grades.get("sgl-eval"))
    seconds = float(row.get("generation_end_time") or 0) - float(row.get("generation_start_time") or 0)
    sample = Sample(
        asked.id,
        repeat,
        state,
        text,
        reply.reasoning,
        plain(reason),
        None,
        tokens,
        reply.reasoning_tokens,
        seconds,
        boot,
        "",
        1,
        (),
        attempt.error,
        now(),
    )
    return sample, grades
