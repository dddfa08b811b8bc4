"""CPU a request, wall time and p99 of our client, the openai package on both transports, and sgl-eval's sampler, on one stub in one run.

    python benchmarks/client.py [--in-flight 64 512 1024] [--delay 2.0] [--memory]

The stub answers every request after a fixed delay, from a process of its own. Each client runs in a fresh process and sends two
waves. Read ratios, not seconds: machines differ. `--memory` instead takes 480 answers of 1.6 MB (400,000 tokens) into a run's record.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

ANSWER = "word " * 400 + r"so \boxed{18}"
#: Text of 400,000 tokens of about four bytes.
LONG = "step " * 320_000 + r"\boxed{18}"


def stub(delay: float, text: str, port: Any) -> None:
    """An HTTP server that answers every chat completion after `delay` seconds."""
    from aiohttp import web

    body = json.dumps(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "stub",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": len(text) // 4, "total_tokens": len(text) // 4 + 10},
        }
    ).encode()

    async def complete(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(delay)
        return web.Response(body=body, content_type="application/json")

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "stub", "object": "model", "created": 0, "owned_by": "x"}]})

    async def main() -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/v1/chat/completions", complete)
        app.router.add_get("/v1/models", models)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
        await site.start()
        port.value = runner.addresses[0][1]
        await asyncio.sleep(3600)

    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    asyncio.run(main())


def ours(url: str, count: int, in_flight: int) -> list[float]:
    """`Client.complete`, as the collector calls it."""
    from mxfp4_validate.endpoint.address import Secret, parse_address
    from mxfp4_validate.endpoint.client import Client
    from mxfp4_validate.endpoint.request import build_body
    from mxfp4_validate.evalspec import Sampling

    async def main() -> list[float]:
        gate, took = asyncio.Semaphore(in_flight), []
        async with Client(parse_address(url), Secret("EMPTY"), concurrency=in_flight) as client:

            async def one(i: int) -> None:
                async with gate:
                    attempt = await client.complete(build_body("stub", [{"role": "user", "content": "hello"}], Sampling(), i), 600, str(i))
                assert attempt.ok, attempt.error
                took.append(attempt.seconds)

            await asyncio.gather(*(one(i) for i in range(count)))
        return took

    return asyncio.run(main())


def _openai(url: str, count: int, in_flight: int, aiohttp: bool) -> list[float]:
    import openai

    async def main() -> list[float]:
        http: Any = openai.DefaultAioHttpClient(timeout=600) if aiohttp else openai.DefaultAsyncHttpxClient(timeout=600)
        gate, took = asyncio.Semaphore(in_flight), []
        async with openai.AsyncOpenAI(base_url=url, api_key="EMPTY", http_client=http, max_retries=0) as client:

            async def one(i: int) -> None:
                async with gate:
                    begun = time.perf_counter()
                    await client.chat.completions.create(
                        model="stub", messages=[{"role": "user", "content": "hello"}], seed=i, max_tokens=2048
                    )
                    took.append(time.perf_counter() - begun)

            await asyncio.gather(*(one(i) for i in range(count)))
        return took

    return asyncio.run(main())


def openai_httpx(url: str, count: int, in_flight: int) -> list[float]:
    return _openai(url, count, in_flight, aiohttp=False)


def openai_aiohttp(url: str, count: int, in_flight: int) -> list[float]:
    return _openai(url, count, in_flight, aiohttp=True)


def sgl_eval(url: str, count: int, in_flight: int) -> list[float]:
    """sgl-eval's own sampler in a thread pool, as its runner uses it; no scoring."""
    from sgl_eval.sampler import ChatCompletionSampler
    from sgl_eval.types import GenConfig

    sampler = ChatCompletionSampler(base_url=url)

    def one(i: int) -> float:
        begun = time.perf_counter()
        sample = sampler([{"role": "user", "content": "hello"}], GenConfig(max_tokens=2048, seed=i))
        assert sample.text, "an empty sample"
        return time.perf_counter() - begun

    with ThreadPoolExecutor(in_flight) as pool:
        return list(pool.map(one, range(count)))


CLIENTS = {"ours": ours, "openai, aiohttp": openai_aiohttp, "sgl-eval": sgl_eval, "openai, httpx": openai_httpx}


def measured(name: str, url: str, count: int, in_flight: int, queue: Any) -> None:
    """Run one client in this process and put (CPU s, wall s, p99 s, peak MB)."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    CLIENTS[name](url, 2, 1)  # imports and the first connection are not what is measured
    used, begun = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    took = CLIENTS[name](url, count, in_flight)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    queue.put((cpu, time.perf_counter() - begun, statistics.quantiles(took, n=100)[98], after.ru_maxrss / 1024))


def speed(context: Any, url: str, delay: float, levels: list[int]) -> None:
    print(f"stub delay {delay} s, two waves; ratio = CPU a request over ours")
    for in_flight in levels:
        base = 0.0
        for name in CLIENTS:
            queue = context.Queue()
            process = context.Process(target=measured, args=(name, url, 2 * in_flight, in_flight, queue))
            process.start()
            cpu, wall, p99, memory = queue.get(timeout=600)
            process.join()
            each = 1000 * cpu / (2 * in_flight)
            base = base or each
            row = f"{each:7.2f} ms CPU a request  ratio {each / base:5.1f}  wall {wall:6.2f} s  p99 {p99:6.2f} s ({p99 / delay - 1:+.0%})  {memory:4.0f} MB"
            print(f"{in_flight:5d} in flight  {name:16} {row}", flush=True)


def memory(url: str, queue: Any) -> None:
    """480 answers of 400,000 tokens through the whole `eval`; peak memory of this process."""
    from dataclasses import replace

    from mxfp4_validate import evalspec
    from mxfp4_validate.endpoint.address import Secret, parse_address
    from mxfp4_validate.endpoint.collect import Options
    from mxfp4_validate.prompts.profiles import profile
    from mxfp4_validate.questions.base import Question, QuestionSet
    from mxfp4_validate.serving.planned import plan_run
    from mxfp4_validate.serving.run import Servers, run_eval

    spec = evalspec.load("aime25").with_sampling(max_tokens=400_000)
    questions = QuestionSet("aime25", tuple(Question(f"q{i}", f"Question {i}", "18") for i in range(30)), "benchmark")
    planned = plan_run(replace(spec, looks=(16,)), profile("default"), questions, 16, {})
    with tempfile.TemporaryDirectory() as folder:
        servers = Servers((parse_address(url),), Secret("EMPTY"), canaries=0)
        done = run_eval(planned, servers, Options("", planned.spec.sampling, concurrency=64), Path(folder) / "run")
        size = (Path(folder) / "run" / "run.sqlite").stat().st_size
    queue.put((dict(done.counts), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, size / 1e6))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--in-flight", type=int, nargs="+", default=[64, 512, 1024])
    parser.add_argument("--delay", type=float, default=2.0)
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    port = context.Value("i", 0)
    server = context.Process(target=stub, args=(args.delay, LONG if args.memory else ANSWER, port), daemon=True)
    server.start()
    while not port.value:
        time.sleep(0.05)
    url = f"http://127.0.0.1:{port.value}/v1"
    if args.memory:
        queue = context.Queue()
        context.Process(target=memory, args=(url, queue)).start()
        counts, peak, size = queue.get(timeout=600)
        print(f"480 answers of {len(LONG) / 1e6:.1f} MB: {counts}, peak {peak:.0f} MB, record {size:.1f} MB")
    else:
        speed(context, url, args.delay, args.in_flight)
    server.terminate()


if __name__ == "__main__":
    main()
