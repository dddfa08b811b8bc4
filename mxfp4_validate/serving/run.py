"""`eval`: preflight, canary, collection and the record, from a plan and some servers to one finished or resumable run."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from mxfp4_validate import provenance, states
from mxfp4_validate.endpoint.address import Address, Secret
from mxfp4_validate.endpoint.client import Client, Limits
from mxfp4_validate.endpoint.collect import Collector, Ending, Options, Task, counts_of
from mxfp4_validate.endpoint.identity import UNREACHABLE, Identity, changes, read_identity
from mxfp4_validate.endpoint.writer import Writer
from mxfp4_validate.errors import IncompleteRun, InvalidRun, UsageError
from mxfp4_validate.grading import grade
from mxfp4_validate.grading.base import Grade
from mxfp4_validate.records.evals import EvalStore, run_file
from mxfp4_validate.serving.canary import canary
from mxfp4_validate.serving.interrupts import Interrupts
from mxfp4_validate.serving.lock import FolderLock
from mxfp4_validate.serving.names import shown
from mxfp4_validate.serving.planned import Planned, difference
from mxfp4_validate.serving.progress import Progress

#: Exit status by how a collection ended, if samples are missing.
_STATUS = {"done": IncompleteRun.exit_code, "gave-up": IncompleteRun.exit_code, "invalid": InvalidRun.exit_code, "interrupted": 130}
#: Seconds between two looks at whether a launched server still runs.
_WATCH_S = 0.2


@dataclass(frozen=True)
class Servers:
    """Where and how to ask. `model` None takes the only one served; `expect_backend` None asks for nothing.

    `gone` says why a server that we launched will not come back, "" while it runs: no outage is waited out then.
    """

    addresses: tuple[Address, ...]
    key: Secret
    model: str | None = None
    expect_backend: str | None = None
    ca_file: Path | None = None
    limits: Limits = field(default_factory=Limits)
    canaries: int = 4
    show_accuracy: bool = False
    gone: Callable[[], str] | None = None


@dataclass(frozen=True)
class Finished:
    """What became of a run: exit status as `errors` lists them, samples by state, why it ended."""

    path: Path
    status: int
    counts: Mapping[str, int]
    ending: Ending


@dataclass(frozen=True)
class Job:
    """One run to do: its plan, its servers, how to ask, and its folder."""

    planned: Planned
    servers: Servers
    options: Options
    out: Path


def run_eval(planned: Planned, servers: Servers, options: Options, out: Path, say: Callable[[str], None] | None = None) -> Finished:
    """Run or resume; never raises once the record exists, so that everything kept is reported."""
    return run_evals([Job(planned, servers, options, out)], say)[0]


def run_evals(jobs: Sequence[Job], say: Callable[[str], None] | None = None) -> list[Finished]:
    """Several runs at one time, each as `run_eval`; the first that must not go on ends all of them."""
    say = say or (lambda text: print(shown(text), file=sys.stderr))
    with ExitStack() as stack:
        stores = []
        for job in jobs:
            stack.enter_context(FolderLock(job.out))
            stores.append(_open_or_create(run_file(job.out), job.planned))
            stack.callback(stores[-1].close)
        return asyncio.run(_run_all(jobs, stores, say))


async def _run_all(jobs: Sequence[Job], stores: Sequence[EvalStore], say: Callable[[str], None]) -> list[Finished]:
    interrupts = Interrupts()
    runs = [_run(j.planned, j.servers, j.options, store, say, interrupts) for j, store in zip(jobs, stores, strict=True)]
    return list(await asyncio.gather(*runs))


def _open_or_create(path: Path, planned: Planned) -> EvalStore:
    if not path.exists():
        settings, facts = planned.settings, provenance.collect()
        return EvalStore.create(path, planned.spec.name, planned.repeats, planned.rows, settings, planned.fingerprint, facts)
    store = EvalStore.resume(path)
    run = store.run()
    wrong = difference(run.fingerprint | {"repeats": run.repeats}, dict(planned.fingerprint) | {"repeats": planned.repeats})
    if [row[0] for row in store.questions()] != [row[0] for row in planned.rows]:
        wrong.append("the questions or their order differ")
    if wrong:
        store.close()
        raise UsageError(
            f"--out {path.parent} holds a run with another configuration ({'; '.join(wrong)}); give the same settings, or another folder"
        )
    return store


async def _run(
    planned: Planned, servers: Servers, options: Options, store: EvalStore, say: Callable[[str], None], interrupts: Interrupts
) -> Finished:
    found = store.states()
    left = [task for task in planned.tasks if found.get((task.question_id, task.repeat)) not in states.MODEL_STATES]
    if not left:
        say("nothing left to ask")
        return _finish(store, planned, Ending())
    concurrency = _raise_file_limit(options.concurrency, say)
    async with AsyncExitStack() as stack:
        clients = []
        for address in servers.addresses:
            client = Client(address, servers.key, concurrency=concurrency, limits=servers.limits, ca_file=servers.ca_file)
            clients.append(await stack.enter_async_context(client))
        identities = await _preflight(clients, servers, planned, store, say)
        model = identities[0].values["model"]
        options = replace(options, model=model, concurrency=concurrency)
        wrong = await canary(clients, model, options.sampling, servers.canaries) if servers.canaries else []
        if wrong:
            store.add_event("canary", "; ".join(wrong))
            raise InvalidRun(f"the server generates rubbish, the eval was not started: {shown('; '.join(wrong), 600)}")
        writer = Writer(store, grader_of(planned), planned.fingerprint["grader"])
        collector = Collector(clients, identities, options, writer)
        extra = _accuracy_of(writer) if servers.show_accuracy else None
        with interrupts.stopping(collector), Progress(planned.spec.name, len(planned.tasks), len(planned.tasks) - len(left)) as progress:
            progress.extra = extra
            collector.on_done = progress
            ending = await _collect(collector, left, servers.gone)
    finished = _finish(store, planned, ending)
    _name_missing(store, say)
    return finished


def _name_missing(store: EvalStore, say: Callable[[str], None], most: int = 3) -> None:
    """Say which samples were asked and got nothing, and why."""
    lost = [sample for sample in store.samples() if sample.state in states.MISSING_STATES]
    for sample in lost[:most]:
        say(f"missing: {sample.question_id} repeat {sample.repeat}: {sample.state}: {shown(sample.error, 300)}")
    if len(lost) > most:
        say(f"missing: and {len(lost) - most} more")


def _accuracy_of(writer: Writer) -> Callable[[], str]:
    """What --show-accuracy adds to the progress line."""
    return lambda: (
        f"{writer.right} of {sum(writer.written[state] for state in states.MODEL_STATES)} right so far (biased: short answers first)"
    )


async def _collect(collector: Collector, left: Sequence[Task], gone: Callable[[], str] | None) -> Ending:
    """All tasks; stopped as soon as a server that we launched has ended, because nobody will start it again."""

    async def watch() -> None:
        while gone is not None:
            if text := gone():
                collector.stop("gave-up", text)
                return
            await asyncio.sleep(_WATCH_S)

    watching = asyncio.create_task(watch())
    try:
        return await collector.collect(left)
    finally:
        watching.cancel()


def grader_of(planned: Planned) -> Callable[[str, str], Mapping[str, Grade]]:
    """Grades by mode; the profile's own first, then our two, so that both can always be shown side by side."""
    modes = tuple(dict.fromkeys((planned.fingerprint["grader"], "lenient", "strict")))
    suite = planned.spec.grader
    return lambda text, gold: {mode: grade(suite, text, gold, mode=mode) for mode in modes}


async def _preflight(
    clients: Sequence[Client], servers: Servers, planned: Planned, store: EvalStore, say: Callable[[str], None]
) -> list[Identity]:
    """Identity of every server, all of them one and the same thing, before the first token."""
    identities = []
    for client in clients:
        if client.address.proxy:
            say(f"note: {client.address.root} is asked through the proxy {client.address.proxy}")
        try:
            identity = await read_identity(client, servers.model)
        except UNREACHABLE as error:
            raise IncompleteRun(f"no server at {client.address.api}: {servers.key.redact(str(error)) or type(error).__name__}") from error
        _require_model(identity, servers.model, client.address)
        if servers.expect_backend is not None and identity.values.get("moe_backend") != servers.expect_backend:
            running = identity.values.get("moe_backend", "unknown")
            store.add_event("wrong-backend", f"{client.address.root} runs {running}, {servers.expect_backend} was asked for")
            raise InvalidRun(
                f"{client.address.root} runs MoE backend {running!r}, --expect-backend is {servers.expect_backend!r}; start it with the right one"
            )
        cap = planned.spec.sampling.max_tokens
        if identity.context_length is not None and cap >= identity.context_length:
            raise UsageError(
                f"max_tokens {cap} leaves no room for a prompt in the server's context of {identity.context_length}; "
                f"lower --max-tokens or start the server with a longer context"
            )
        store.add_boot(identity.boot, client.address.root, identity.values)
        identities.append(identity)
    for client, identity in zip(clients[1:], identities[1:], strict=True):
        wrong = changes(identities[0], identity)
        if wrong:
            raise InvalidRun(f"{client.address.root} is not what {clients[0].address.root} is: {'; '.join(wrong)}")
    _same_as_before(store, identities[0])
    say(
        f"{identities[0].values['model']} with MoE backend {identities[0].values.get('moe_backend', 'unknown')} at {len(clients)} address(es)"
    )
    return identities


def _same_as_before(store: EvalStore, identity: Identity) -> None:
    """A resumed run must go on with the model, version and backend it began with."""
    for _, values in store.boots().values():
        wrong = changes(Identity(values, "", None, ()), identity)
        if wrong:
            raise InvalidRun(
                f"this run began on another server: {'; '.join(wrong)}; resume it on the same one, or start a new run with another --out"
            )


def _require_model(identity: Identity, asked: str | None, address: Address) -> None:
    if asked is None and len(identity.models) != 1:
        raise UsageError(f"{address.api} serves {len(identity.models)} models ({', '.join(identity.models[:5])}); choose one with --model")
    if asked is not None and identity.models and asked not in identity.models:
        raise UsageError(f"--model {asked!r} is not served at {address.api}; it serves {', '.join(identity.models[:5])}")


def _raise_file_limit(concurrency: int, say: Callable[[str], None]) -> int:
    """Sockets for every request in flight, or fewer requests."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = concurrency + 128
    if soft < wanted:
        top = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (top, hard))
        if top < wanted:
            concurrency = max(1, top - 128)
            say(f"only {top} open files are allowed here: --concurrency lowered to {concurrency}; raise `ulimit -n`")
    return concurrency


def _finish(store: EvalStore, planned: Planned, ending: Ending) -> Finished:
    keys = {(task.question_id, task.repeat) for task in planned.tasks}
    counts = counts_of({key: state for key, state in store.states().items() if key in keys}, len(keys))
    missing = sum(counts[state] for state in states.MISSING_STATES)
    status = _STATUS[ending.kind] if missing or ending.kind == "invalid" else 0
    if ending.kind != "done":
        store.add_event("ended", f"{ending.kind}: {ending.reason}")
    store.finish(status)
    return Finished(store.path, status, {state: count for state, count in counts.items() if count}, ending)
