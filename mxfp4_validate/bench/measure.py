"""What a bench's child does with one group: weights, calls, graphs, times. With `timing` the only part of a bench that imports torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mxfp4_validate.backends import registry
from mxfp4_validate.backends.base import DEFAULT_TACTIC, Tactic, Timed, Tunes, Unavailable, require
from mxfp4_validate.bench.spec import GRAPH_TOKENS, Row, parse_shape
from mxfp4_validate.bench.timing import FLUSH_OF_L2, HEAD_START, Flush, Lane, capture, first_cause, relative_l2, release, time_lanes
from mxfp4_validate.cases import MoeCase, MoeShape
from mxfp4_validate.checkpoints.synthetic import random_inputs, random_weights
from mxfp4_validate.errors import BackendUnavailable, NotSupported, ShapeError
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights
from mxfp4_validate.tolerances import EXACT_RELATIVE_L2
from mxfp4_validate.worker.child import judge


@dataclass
class Subject:
    """One row in the making: its call, the tactic it forces, and its lanes."""

    row: Row
    call: Callable[[], Tensor]
    expected: Tensor
    lanes: dict[str, Lane] = field(default_factory=dict)
    graph: Any = None


class Bed:
    """What is kept between groups: backends, and the weights of one (shape, bias) as each of them wants them."""

    def __init__(self) -> None:
        self._backends: dict[str, Any] = {}
        self._key: object = None
        self._prepared: dict[str, Any] = {}
        self.flush = Flush()

    def backend(self, spec: str) -> Any:
        if spec not in self._backends:
            self._backends[spec] = registry.resolve(spec)
        return self._backends[spec]

    def prepared(self, specs: tuple[str, ...], case: MoeCase, device: str) -> dict[str, Any]:
        """Each backend's weights, or why it has none: the activation it lacks, or what its `prepare` raised. Those of another shape are dropped first."""
        key = (case.shape, case.seed, specs)
        if self._key != key:
            self._key, self._prepared = None, {}
            release(device)
            weights = random_weights(case, device)
            self._prepared = {spec: attempt(partial(_prepare, self.backend(spec), weights, case.shape)) for spec in specs}
            self._key = key
            del weights
            release(device)
        return self._prepared


def _prepare(backend: Any, weights: MoeWeights, shape: MoeShape) -> Any:
    require(backend, shape.activation)
    return backend.prepare(weights)


_BED = Bed()


def answer(options: Mapping[str, Any]) -> dict[str, Any]:
    """What the parent asked for: the `device`, whether a `backend` can run, or the rows of a `group`."""
    if options["what"] == "device":
        return device_facts(options["device"])
    if options["what"] == "backend":
        found = _BED.backend(options["backend"]).availability()
        return {"available": False, "reason": found.reason} if isinstance(found, Unavailable) else {"available": True, **found.facts}
    return {"rows": [asdict(row) for row in group(_BED, options)]}


def device_facts(device: str) -> dict[str, Any]:
    """The device by name, and how its calls are timed."""
    if device == "cpu" or not torch.cuda.is_available():
        return {"name": "cpu", "clock": "wall clock", "threads": torch.get_num_threads()}
    found = torch.cuda.get_device_properties(0)
    sizes = {"l2_bytes": found.L2_cache_size, "flush_bytes": FLUSH_OF_L2 * found.L2_cache_size, "memory_bytes": found.total_memory}
    clock = "CUDA events around each call, L2 flushed before it; graphs and calls launched ahead exclude the host's time, eager ones do not"
    return {"name": found.name, "clock": clock, "sms": found.multi_processor_count, **sizes}


def group(bed: Bed, options: Mapping[str, Any]) -> list[Row]:
    """The rows of one (shape, bias, tokens), all backends in turn."""
    shape: MoeShape = replace(parse_shape(options["shape"]), has_bias=options["bias"])
    case = MoeCase(shape, options["tokens"], seed=options["seed"])
    specs, device = tuple(options["backends"]), options["device"]
    prepared = bed.prepared(specs, case, device)
    inputs = random_inputs(case, device)
    blank = Row(shape.name, shape.has_bias, case.num_tokens, "", False, "error", experts_hit=int(inputs.topk_ids.unique().numel()))
    subjects: list[Subject] = []
    rows: list[Row] = []
    for spec in specs:
        for found in _subjects(bed.backend(spec), prepared[spec], inputs, shape, replace(blank, backend=spec), options["tuned"]):
            (subjects if isinstance(found, Subject) else rows).append(found)  # type: ignore[arg-type]
    for subject in subjects:
        _lanes(subject, options["graph"], device)
    time_lanes(bed.flush, [lane for s in subjects for lane in s.lanes.values()], options["warmup"], options["repeats"], device)
    beside = tuple(s.row.label for s in subjects)
    rows += [_finished(subject, beside, bed.flush) for subject in subjects]
    del subjects
    release(device)
    return sorted(rows, key=lambda row: (specs.index(row.backend), row.tuned))


def _subjects(backend: Any, prepared: Any, inputs: MoeInputs, shape: MoeShape, blank: Row, tuned: str) -> list[Subject | Row]:
    """The backend as it comes and tuned, as far as the options and the backend want either."""
    if isinstance(prepared, Exception):
        return [_failed(blank, prepared)]
    found: list[Subject | Row] = [] if tuned == "on" else [_subject(backend, prepared, inputs, shape, blank, DEFAULT_TACTIC)]
    if tuned == "off" or (tuned == "both" and not isinstance(backend, Tunes)):
        return found
    row = replace(blank, tuned=True)
    if not isinstance(backend, Tunes):
        return [*found, replace(row, outcome="unavailable", why=f"{backend.name} has no tuner")]
    started = time.perf_counter()
    tactic = attempt(lambda: backend.tune(prepared, inputs, shape.activation))
    if isinstance(tactic, Exception):
        return [*found, _failed(row, tactic)]
    row = replace(row, tactic=tactic.name, tune_s=time.perf_counter() - started)
    return [*found, _subject(backend, prepared, inputs, shape, row, tactic)]


def _subject(backend: Any, prepared: Any, inputs: MoeInputs, shape: MoeShape, row: Row, tactic: Tactic) -> Subject | Row:
    """The call to be timed, and what `run` says it must compute."""
    act = shape.activation
    notes: list[str] = []

    def make() -> tuple[Callable[[], Tensor], Tensor]:
        if isinstance(backend, Timed):
            call = backend.timed(prepared, inputs, act, tactic=tactic)
        else:
            out = torch.empty_like(inputs.x)
            call = partial(backend.run, prepared, inputs, act, tactic=tactic, out=out)
            notes.append("timed through `run`: whatever it does around the kernel counts")
        width = call().stride(0)
        if width != inputs.x.shape[1]:
            notes.append(f"x padded to {width} columns beforehand and the output left so: neither copy counts")
        notes.extend(filter(None, [getattr(backend, "timed_excludes", "")]))
        return call, backend.run(prepared, inputs, act, tactic=tactic)

    made = attempt(make)
    if isinstance(made, Exception):
        return _failed(row, made)
    return Subject(replace(row, notes=tuple(notes)), *made)


def _lanes(subject: Subject, graph: str, device: str) -> None:
    """Decide how the row is timed; the eager call is timed in any case, beside a graph or a launch ahead."""
    row = subject.row
    subject.lanes["eager"] = Lane(subject.call)
    long = row.tokens > GRAPH_TOKENS
    if device == "cpu":
        subject.row = replace(row, why="a CPU has no graphs")
    elif graph == "on" or (graph == "auto" and not long):
        _capture_lane(subject)
    elif long:
        subject.row = replace(row, mode="ahead", why=f"more than {GRAPH_TOKENS} tokens: launched while the GPU is busy, as servers do")
        subject.lanes["ahead"] = Lane(subject.call, HEAD_START)
    else:
        subject.row = replace(row, why="--graph off")


def _capture_lane(subject: Subject) -> None:
    """Time a graph if the call can be captured; otherwise the row stays eager and says why."""
    try:
        subject.graph, result = capture(subject.call)
    except Exception as error:
        torch.cuda.synchronize()  # a context that the attempt broke shows here, and ends the child
        subject.row = replace(subject.row, why=f"not captured: {_line(first_cause(error))}")
        return
    result.fill_(float("nan"))  # what the capture's own calls wrote must not pass for the replay's output
    subject.graph.replay()
    output = result.clone()  # before an eager call writes to the same buffer
    subject.row = replace(subject.row, mode="graph")
    subject.lanes["graph"] = Lane(subject.graph.replay)
    subject.call = lambda: output


def _finished(subject: Subject, beside: tuple[str, ...], flush: Flush) -> Row:
    """The row with its times, if what was timed also computed what it should."""
    row = subject.row
    error = relative_l2(subject.call()[:, : subject.expected.shape[1]], subject.expected)
    if not error <= 2 * EXACT_RELATIVE_L2.value:  # either call may lie that far from float64; a NaN lies nowhere
        return replace(row, outcome="wrong", why=f"the timed call's output is not `run`'s: relative L2 {error:.3g}")
    samples = subject.lanes[row.mode].samples
    q1, median, q3 = (float(v) for v in np.percentile(samples, (25, 50, 75)))
    eager = subject.lanes["eager"]
    host = float(np.median(eager.host))
    if row.mode == "ahead" and host > HEAD_START * flush.ms():
        row = replace(
            row, notes=(*row.notes, f"launching takes the host {host:.2f} ms, longer than its head start: some of that is in the time")
        )
    beside_ms = float(np.median(eager.samples)) if row.mode != "eager" else None
    row = replace(row, outcome="measured", beside=tuple(label for label in beside if label != row.label), eager_ms=beside_ms, host_ms=host)
    return replace(row, median_ms=median, q1_ms=q1, q3_ms=q3, samples_ms=tuple(round(s, 6) for s in samples))


def attempt(make: Callable[[], Any]) -> Any:
    """What `make` returns, or the exception it raised; out of memory and a broken device are raised, since nothing after them counts."""
    try:
        return make()
    except Exception as error:
        if judge(error).discard:
            raise
        return error.with_traceback(None)  # its frames would keep a layer's weights alive


def _failed(row: Row, error: Exception) -> Row:
    """A row without a time: what a backend refuses is unavailable, anything else an error."""
    refused = isinstance(error, NotSupported | BackendUnavailable | ShapeError | NotImplementedError)
    return replace(row, outcome="unavailable" if refused else "error", why=_line(error))


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
