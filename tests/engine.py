"""A model server as small as can be, to be launched by the tests: `python engine.py --mode MODE --port N`. Standard library only.

Modes: ok; exits (status 3 at once); never-healthy (503 for ever); slow (healthy after --after seconds); secret (prints the keys it
finds, then as ok); dies (as ok, ends with status 7 at the first GET /die); killed (SIGKILLs itself, as the kernel does for memory);
forks (as ok, with a child in its session, one in a session of its own, and an orphaned grandchild; they ignore SIGTERM);
hides (as ok, with an orphan that emptied its environment); stubborn (as ok, ignores SIGTERM).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Health, models and info."""

    mode, backend, ready_at = "ok", "marlin", 0.0

    def do_GET(self) -> None:
        if self.path == "/die":
            print("the engine meets a fatal error", flush=True)
            os._exit(7)
        healthy = self.mode != "never-healthy" and time.monotonic() >= self.ready_at
        documents = {
            "/health": {},
            "/v1/models": {"object": "list", "data": [{"id": "stub", "object": "model"}]},
            "/get_server_info": {"model_path": "stub", "version": "9.9"} | ({"moe_runner_backend": self.backend} if self.backend else {}),
        }
        status = 503 if not healthy else 200 if self.path in documents else 404
        body = json.dumps(documents.get(self.path, {})).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def offspring(folder: str) -> None:
    """Three processes that ignore SIGTERM; each writes its id into `folder`."""
    for name in ("child", "session", "orphan"):
        if os.fork():
            continue
        if name == "session":
            os.setsid()
        if name == "orphan":
            os.setsid()
            if os.fork():
                os._exit(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with open(os.path.join(folder, name), "w") as file:
            file.write(str(os.getpid()))
        while True:
            time.sleep(1)


def hidden(folder: str) -> None:
    """An orphan in a session of its own, with an environment of its own: only its ancestry tells whose it is."""
    if not os.fork():
        os.setsid()
        if os.fork():
            os._exit(0)
        with open(os.path.join(folder, "hidden"), "w") as file:
            file.write(str(os.getpid()))
        os.execve(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(60)"], {})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", default="ok")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--after", type=float, default=0.0)
    parser.add_argument("--backend", default="marlin")
    parser.add_argument("--say", default="")
    parser.add_argument("--folder", default="")
    parser.add_argument("--api-key", default="")
    args = parser.parse_args()
    print("the engine starts", *args.say.split("|"), sep="\n", flush=True)
    if args.mode == "exits":
        print("\n".join(f"traceback line {i}" for i in range(40)), "\x1b[31mno GPU here", file=sys.stderr, flush=True)
        sys.exit(3)
    if args.mode == "secret":
        print(f"server_args(api_key={args.api_key!r})", "token", os.environ.get("HF_TOKEN"), flush=True)
        time.sleep(0.3)
        sys.exit(1)
    if args.mode == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if args.mode == "forks":
        offspring(args.folder)
    if args.mode == "hides":
        hidden(args.folder)
    if args.mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Handler.mode, Handler.backend, Handler.ready_at = args.mode, args.backend, time.monotonic() + args.after
    server = ThreadingHTTPServer(("127.0.0.1", args.port), Handler)
    if args.mode == "slow":
        threading.Thread(target=loading, daemon=True).start()
    server.serve_forever()


def loading() -> None:
    for percent in range(100):
        print(f"loading shard {percent} of 100", end="\r", file=sys.stderr, flush=True)
        time.sleep(0.1)


if __name__ == "__main__":
    main()
