"""A process that launches `engine.py` and then waits to be killed: `python launcher.py FOLDER PORT [fork]`. With `fork`, a child of its own
holds copies of everything it has open, as a multiprocessing pool would."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from mxfp4_validate.endpoint.launch import Server
from mxfp4_validate.serverspec import Launch

if __name__ == "__main__":
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    engine = str(Path(__file__).with_name("engine.py"))
    argv = (sys.executable, "-S", engine, "--mode", "forks", "--port", str(port), "--folder", str(folder))
    server = Server(Launch("engine", argv, port, deadline=30), folder / "engine.log")
    server.start()
    server.wait()
    if "fork" in sys.argv:
        if not os.fork():
            (folder / "fork").write_text(str(os.getpid()))
            time.sleep(60)
            os._exit(0)
        while not (folder / "fork").exists():
            time.sleep(0.02)
    (folder / "ready.tmp").write_text(str(server.pid))
    (folder / "ready.tmp").rename(folder / "ready")
    time.sleep(60)
