"""The workers of one pytest process: one GPU, a worker a backend, one child at a time. No torch here."""

from __future__ import annotations

import os
from collections.abc import Mapping

from mxfp4_validate import provenance
from mxfp4_validate.worker.parent import Worker
from mxfp4_validate.worker.protocol import Answer


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The children's environment: one of the GPUs that the caller may use, picked by xdist's worker number, and its share of the CPUs."""
    env, worker = dict(environ), environ.get("PYTEST_XDIST_WORKER")
    devices = provenance.visible_gpus(environ)
    if devices:
        env["CUDA_VISIBLE_DEVICES"] = devices[int((worker or "gw0").removeprefix("gw")) % len(devices)]
    if worker:
        env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))))
    return env


class Pool:
    """A worker a backend, of which one at a time holds a child: two layers of production size do not fit on a GPU."""

    def __init__(self, env: Mapping[str, str], deadline_scale: float, fault: str | None) -> None:
        self._settings = env, deadline_scale, fault
        self._workers: dict[str, Worker] = {}
        self._available: dict[str, Answer] = {}

    def worker(self, spec: str) -> Worker:
        """The worker of a backend; the others' children end."""
        for other in self._workers.keys() - {spec}:
            self._workers[other].close()
        return self._workers.setdefault(spec, Worker(spec, *self._settings))

    def availability(self, spec: str) -> Answer:
        """Whether a backend can run here, asked once."""
        if spec not in self._available:
            self._available[spec] = self.worker(spec).availability()
        return self._available[spec]

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()
