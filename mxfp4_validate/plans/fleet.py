"""The servers of a plan: which are up, on what boot, and how the next one gets the GPUs."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from mxfp4_validate import serverspec
from mxfp4_validate.endpoint.address import Address, Secret, parse_address
from mxfp4_validate.endpoint.client import Client
from mxfp4_validate.endpoint.identity import UNREACHABLE, Identity, changes, read_identity
from mxfp4_validate.endpoint.launch import Server, free_port
from mxfp4_validate.errors import IncompleteRun, InvalidRun, UsageError
from mxfp4_validate.plans.spec import LEGS, LegSpec, PlanFile
from mxfp4_validate.serverspec import HOST, Launch


@dataclass
class Up:
    """A leg that can be asked: one boot. `scoring` is a boot without speculation, for log-probabilities alone."""

    leg: str
    addresses: tuple[Address, ...]
    identity: Identity
    backend: str
    model: str | None = None
    server: Server | None = None
    scoring: bool = False
    used: bool = False  # whether a block of repeats was asked of this boot

    def gone(self) -> str:
        """Why it will not come back, "" while it runs or is none of ours."""
        return self.server.poll() if self.server else ""


class Fleet:
    """Starts, keeps and ends the servers; a context manager that leaves nothing running."""

    def __init__(self, plan: PlanFile, out: Path, say: Callable[[str], None], key: Secret, *, grace: float = 30.0) -> None:
        self._plan, self._out, self._say, self._key, self._grace = plan, out, say, key, grace
        self._up: dict[str, Up] = {}
        self._starting: dict[str, tuple[Server, Launch]] = {}
        self.launches = 0

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            for server, _ in self._starting.values():
                server.stop()
        finally:
            for leg in list(self._up):
                self._stop(leg)

    def up(self) -> tuple[str, ...]:
        """Legs that run now and hold GPUs, or need none."""
        return tuple(self._up)

    def use(self, leg: str, *, scoring: bool = False, fresh: bool = False) -> Up:
        """The leg's server: the one that runs, or a new boot (`fresh`: also where a block was asked of the one that runs).

        `InvalidRun` if it runs another backend, `IncompleteRun` if it does not run.
        """
        spec = self._plan.leg(leg)
        scoring = scoring and speculates(spec)
        found = self._up.get(leg)
        if found is not None and (found.server is None or (found.scoring == scoring and not found.gone() and not (fresh and found.used))):
            return found
        self._stop(leg)
        if not spec.base_url and self._plan.order != "side-by-side":
            for other in LEGS:  # they share the GPUs
                if other in self._up and self._up[other].server is not None:
                    self._stop(other)
        self._up[leg] = self._endpoints(leg, spec) if spec.base_url else self._launched(leg, spec, scoring)
        return self._up[leg]

    def _endpoints(self, leg: str, spec: LegSpec) -> Up:
        addresses = tuple(parse_address(url) for url in spec.base_url)
        found = asyncio.run(_identities(addresses, self._key, spec.model or None))
        wrong = [f"{a.root}: {line}" for a, one in zip(addresses, found, strict=True) for line in changes(found[0], one)]
        if wrong:
            raise InvalidRun(f"the servers of the {leg} are not one and the same: {'; '.join(wrong)}")
        running = found[0].values.get("moe_backend", "")
        if spec.backend and running.casefold() != spec.backend.casefold():
            raise InvalidRun(f"{leg} {addresses[0].root} runs MoE backend {running or 'unknown'!r}, the plan asks for {spec.backend!r}")
        return Up(leg, addresses, found[0], running, spec.model or None)

    def _launched(self, leg: str, spec: LegSpec, scoring: bool) -> Up:
        server, launch = self._starting.pop(leg) if leg in self._starting else self._start(leg, scoring)
        try:
            if self._plan.order == "side-by-side":  # both load at the same time
                for other in LEGS:
                    if other != leg and not self._plan.leg(other).base_url and other not in {*self._up, *self._starting}:
                        self._starting[other] = self._start(other, scoring and speculates(self._plan.leg(other)))
            identity = server.wait()
        except BaseException:
            server.stop()
            raise
        backend = launch.backend or identity.values.get("moe_backend", "")
        return Up(leg, (server.address,), identity, backend, None, server, scoring)

    def _start(self, leg: str, scoring: bool) -> tuple[Server, Launch]:
        spec = self._plan.leg(leg)
        launch = launch_of(leg, spec, speculative=spec.speculative and not scoring)
        server = Server(launch, self._out / "logs" / f"{leg}.log", key=self._key, say=self._say, grace=self._grace)
        server.start()
        self.launches += 1
        return server, launch

    def _stop(self, leg: str) -> None:
        found = self._up.pop(leg, None)
        if found is not None and found.server is not None:
            found.server.stop()


def speculates(spec: LegSpec) -> bool:
    """Whether the leg decodes speculatively, in which case its log-probabilities need a boot of their own."""
    return bool(spec.recipe) and spec.speculative and bool(serverspec.load(spec.recipe).speculative)


def launch_of(leg: str, spec: LegSpec, *, speculative: bool = True) -> Launch:
    """What is started for a leg, from its recipe or its own command."""
    port = spec.port or free_port()
    gpus = {"CUDA_VISIBLE_DEVICES": spec.gpus} if spec.gpus else {}
    if spec.recipe:
        made = serverspec.load(spec.recipe).launch(
            spec.backend, port, model=spec.model, tp=spec.tp, context_length=spec.context_length, thinking=spec.thinking,
            speculative=speculative, python=spec.python, extra=spec.extra,
        )  # fmt: skip
        return serverspec.Launch(
            f"{leg}-{made.name}", made.argv, made.port, {**made.env, **gpus, **spec.env}, made.host, made.model, made.health, made.deadline,
            made.backend, made.evidence,
        )  # fmt: skip
    values = {"python": spec.python or sys.executable, "host": HOST, "port": str(port), "model": spec.model}
    values |= {"tp": str(spec.tp), "context_length": str(spec.context_length), "tiny": str(serverspec.TINY)}
    argv = serverspec.filled(spec.command, values)
    return Launch(
        leg, argv, port, {**gpus, **spec.env}, model=spec.model, health=spec.health, deadline=spec.load_deadline, backend=spec.backend,
        evidence=spec.evidence,
    )  # fmt: skip


async def _identities(addresses: tuple[Address, ...], key: Secret, model: str | None) -> list[Identity]:
    found = []
    for address in addresses:
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(Client(address, key, concurrency=1))
            try:
                found.append(await read_identity(client, model))
            except UNREACHABLE as error:
                raise IncompleteRun(f"no server at {address.api}: {key.redact(str(error)) or type(error).__name__}") from error
        models = found[-1].models
        if model is None and len(models) != 1:
            raise UsageError(f"{address.api} serves {len(models)} models ({', '.join(models[:5])}); name one as `model` of the leg")
    return found


def api_key() -> Secret:
    """The key all servers of a run are asked with."""
    return Secret(os.environ.get("OPENAI_API_KEY") or "EMPTY")
