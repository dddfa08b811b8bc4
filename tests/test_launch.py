"""Launched servers: every way one can fail has its message, its exception and its exit code, and nothing of it is ever left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mxfp4_validate.endpoint import supervise
from mxfp4_validate.endpoint.address import Secret
from mxfp4_validate.endpoint.launch import Server, free_port
from mxfp4_validate.endpoint.redaction import Redactor
from mxfp4_validate.errors import IncompleteRun, InvalidRun, UsageError
from mxfp4_validate.serverspec import Launch

HERE = Path(__file__).resolve().parent
SECRET = "s3cret-Value-77"
pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are looked up in /proc")


class Bench:
    """Makes servers of `engine.py` in one folder, and ends what a test left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self._servers: list[Server] = []

    def launch(self, mode: str, *more: str, **changes: object) -> Launch:
        port = free_port()
        argv = (sys.executable, "-S", str(HERE / "engine.py"), "--mode", mode, "--port", str(port), "--folder", str(self.folder), *more)
        return replace(Launch("engine", argv, port, deadline=20, backend="marlin"), **changes)  # type: ignore[arg-type]

    def server(self, mode: str, *more: str, **changes: object) -> Server:
        server = Server(
            self.launch(mode, *more, **changes), self.folder / "engine.log", key=Secret("EMPTY"), say=self.said.append, every=0.3, grace=0.5
        )
        self._servers.append(server)
        return server

    def close(self) -> None:
        for server in self._servers:
            server.stop()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def alive(pid: int) -> bool:
    return pid in supervise.parents()


def until(condition: Callable[[], object], seconds: float = 10.0) -> bool:
    """Whether it comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def listening(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def offspring(folder: Path) -> list[int]:
    names = ("child", "session", "orphan")
    assert until(lambda: all((folder / name).exists() and (folder / name).read_text() for name in names)), "the engine did not fork"
    return [int((folder / name).read_text()) for name in names]


def test_a_good_server_is_started_proved_and_ended(bench: Bench) -> None:
    server = bench.server("ok", "--say", "moe_runner_backend='marlin'")
    with server:
        identity = server.wait()
        assert identity.values["moe_backend"] == "marlin"
        assert server.poll() == ""
        pid = server.pid
        assert alive(pid)
        assert os.getsid(pid) == pid, "it has a session of its own"
        assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null", "standard input is closed to it"
    assert not alive(pid)
    assert not listening(server.launch.port)
    assert "the engine starts" in server.log.read_text()
    assert any("healthy after" in line for line in bench.said)
    assert server.log.stat().st_mode & 0o777 == 0o600
    server.stop()  # twice does no harm
    with pytest.raises(UsageError, match="started already"):
        server.start()


def test_exits_at_once(bench: Bench) -> None:
    """Status and last lines, without the steering characters that they hold; the earlier lines are left to the log."""
    with pytest.raises(IncompleteRun) as caught, bench.server("exits") as server:
        server.wait()
    text = str(caught.value)
    assert caught.value.exit_code == 5
    assert "server engine exited with status 3" in text
    assert "\\x1b[31mno GPU here" in text
    assert "traceback line 39" in text
    assert "traceback line 20" in text
    assert "traceback line 19\n" not in text, "twenty lines are enough"
    assert "/health: connection refused" in text


def test_never_healthy(bench: Bench) -> None:
    started = time.monotonic()
    with pytest.raises(IncompleteRun) as caught, bench.server("never-healthy", deadline=1.5) as server:
        server.wait()
    assert 1.4 < time.monotonic() - started < 8
    text = str(caught.value)
    assert "not healthy within 1.5 s, though it runs: /health: HTTP 503" in text
    assert "load_deadline" in text
    assert "| the engine starts" in text


def test_health_alone_is_not_enough(bench: Bench) -> None:
    """A path that answers 404 is named as tried; /health would have been healthy."""
    with pytest.raises(IncompleteRun, match="/ready: HTTP 404"), bench.server("ok", health="/ready", deadline=1.0) as server:
        server.wait()


def test_a_long_load_is_waited_for_with_progress(bench: Bench) -> None:
    """Lines with the time, the deadline and what a progress bar last wrote, which rewrites its line."""
    with bench.server("slow", "--after", "1.6") as server:
        server.wait()
    lines = [line for line in bench.said if "loading for" in line]
    assert len(lines) >= 2, bench.said
    assert "of 20 s, /health: HTTP 503; log: loading shard" in lines[-1]
    assert lines[-1].count("shard") == 1


def test_killed_for_memory(bench: Bench) -> None:
    with pytest.raises(IncompleteRun, match=r"ended by signal 9 \(SIGKILL\).*out-of-memory killer"), bench.server("killed") as server:
        server.wait()


def test_dies_in_the_middle(bench: Bench) -> None:
    """`poll` says so, with the last lines, and keeps saying so."""
    with bench.server("ok") as server:
        server.wait()
        assert server.poll() == ""
        with contextlib.closing(socket.create_connection(("127.0.0.1", server.launch.port))) as request:
            request.sendall(b"GET /die HTTP/1.0\r\n\r\n")
            assert until(server.poll)
        for _ in range(2):
            assert "server engine exited with status 7" in server.poll()
            assert "| the engine meets a fatal error" in server.poll()


def test_ports_stay_below_those_of_outgoing_connections() -> None:
    """A server binds seconds after its port was found free; a client's connection must not be able to take it meanwhile."""
    assert all(20000 <= free_port() < 32768 for _ in range(200))


def test_a_taken_port_is_refused_before_starting(bench: Bench) -> None:
    server = bench.server("ok")
    with contextlib.closing(socket.socket()) as other:
        other.bind(("127.0.0.1", server.launch.port))
        other.listen()
        with pytest.raises(UsageError, match=f"port {server.launch.port} of server engine is in use.*choose another port"):
            server.start()
    assert server.pid == 0
    assert not (bench.folder / "engine.log").exists(), "nothing was started"
    assert "was not started" in server.poll()


def test_a_command_that_is_not_there(bench: Bench) -> None:
    server = bench.server("ok")
    server.launch = replace(server.launch, argv=("no-such-command-here", "--port", "1"))
    with pytest.raises(UsageError, match=r"no-such-command-here: No such file.*on the PATH"):
        server.start()


def test_no_shell_reads_the_arguments(bench: Bench) -> None:
    words = "$(touch pwned); `id` && * | > x"
    with bench.server("ok", "--say", words) as server:
        server.wait()
    assert words.split("|")[0] in server.log.read_text()


def test_secrets_are_echoed_nowhere(bench: Bench) -> None:
    """From the environment and from a flag: not in progress, not in the error, and not in the log once the server has ended."""
    token = "hf_" + "a1B2" * 6
    with pytest.raises(IncompleteRun) as caught, bench.server("secret", "--api-key", SECRET, env={"HF_TOKEN": token}) as server:
        server.wait()
    written = server.log.read_text()
    everything = written + str(caught.value) + repr(caught.value) + "\n".join(bench.said)
    assert SECRET not in everything
    assert token not in everything
    assert "api_key='[redacted]'" in written
    assert "--api-key [redacted]" in bench.said[0]
    assert "token [redacted]" in str(caught.value)


def test_redaction_leaves_ordinary_words(tmp_path: Path) -> None:
    """Counts of tokens and short settings are no secrets; shapes of keys are, wherever they come from."""
    redact = Redactor(
        {"TOKENIZERS_PARALLELISM": "falsehood", "MY_API_KEY": "abcdef12", "KEY": "no"},
        ["--max-total-tokens", "393216", "--api-key=zyxwvu99"],
    )
    assert redact("falsehood 393216 no") == "falsehood 393216 no"
    assert redact("abcdef12 zyxwvu99") == "[redacted] [redacted]"
    assert redact("Authorization: Bearer tokentoken, sk-" + "q" * 20) == "Authorization: Bearer [redacted], [redacted]"
    log = tmp_path / "x.log"
    log.write_bytes(b"\xff plain\nkey abcdef12\r50 %\n")
    redact.scrub(log)
    assert log.read_bytes() == b"\xff plain\nkey [redacted]\r50 %\n"
    assert list(tmp_path.iterdir()) == [log]


def test_earlier_logs_are_kept(bench: Bench) -> None:
    for _ in range(2):
        with pytest.raises(IncompleteRun), bench.server("exits") as server:
            server.wait()
    assert {path.name for path in bench.folder.glob("*.log")} == {"engine.log", "engine.2.log"}


@pytest.mark.parametrize(
    ("reported", "said", "evidence", "message"),
    [
        ("triton", "", "", "asked for MoE backend 'marlin' and reports 'triton'"),
        ("marlin", "Preparing DSv4 MXFP4 experts for FlashInfer SM90 cutlass (layer: 3)", "", "SM90 cutlass' in its log says otherwise"),
        ("marlin", "moe_runner_backend='triton_kernel'", "", "triton_kernel'\" in its log says otherwise"),
        ("", "Using 'TRITON' Mxfp4 MoE backend.", "", "'TRITON' Mxfp4 MoE backend.* says otherwise"),
        ("", "", "", "neither its info nor its log"),
        ("marlin", "", "MXFP4 experts for Marlin backend", "lacks 'MXFP4 experts for Marlin backend'"),
    ],
)
def test_another_backend_than_asked_is_invalid(bench: Bench, reported: str, said: str, evidence: str, message: str) -> None:
    with (
        pytest.raises(InvalidRun, match=message) as caught,
        bench.server("ok", "--backend", reported, "--say", said, evidence=evidence) as server,
    ):
        server.wait()
    assert caught.value.exit_code == 4
    assert "marlin" in str(caught.value)
    assert str(server.log) in str(caught.value)


def test_the_asked_backend_is_proved_by_either_source(bench: Bench) -> None:
    """vLLM tells by its log alone, in capitals; SGLang's draft model may have a backend of its own."""
    lines = "Using 'MARLIN' Mxfp4 MoE backend.|speculative_moe_runner_backend='triton' moe_runner_backend='auto'"
    with bench.server("ok", "--backend", "", "--say", lines, evidence="Using 'MARLIN' Mxfp4 MoE backend") as server:
        server.wait()


def test_stop_ends_every_descendant(bench: Bench) -> None:
    """A child, one in a session of its own and an orphaned grandchild, all deaf to SIGTERM."""
    with bench.server("forks") as server:
        server.wait()
        pids = [server.pid, *offspring(bench.folder)]
        assert all(map(alive, pids))
        assert os.getsid(pids[2]) != server.pid, "the second left the session"
    assert not [pid for pid in pids if alive(pid)]


def test_stop_ends_an_orphan_that_emptied_its_environment(bench: Bench) -> None:
    """The mark in the environment does not find it; that the supervisor inherits the orphans of its tree does."""
    with bench.server("hides") as server:
        server.wait()
        assert until(lambda: (bench.folder / "hidden").exists() and (bench.folder / "hidden").read_text())
        pid = int((bench.folder / "hidden").read_text())
        assert until(lambda: Path(f"/proc/{pid}/environ").read_bytes() == b""), "it has not become another program yet"
        assert alive(pid)
    assert not alive(pid)


def test_stop_touches_nothing_else(bench: Bench) -> None:
    """Another child of ours keeps running and keeps its status, and so does a second server, also where the first lost its supervisor."""
    child = subprocess.Popen([sys.executable, "-S", "-c", "import sys; sys.stdin.read(); sys.exit(9)"], stdin=subprocess.PIPE)
    first, second = bench.server("ok"), bench.server("ok")
    first.start()
    second.start()
    os.kill(supervise.parents()[first.pid], signal.SIGKILL)
    assert until(first.poll)
    first.stop()
    assert "was stopped" in first.poll()
    assert second.poll() == ""
    second.wait()
    assert child.poll() is None
    second.stop()
    assert "was stopped" in second.poll()
    child.communicate(b"")
    assert child.returncode == 9


def test_a_stubborn_server_is_killed_after_the_grace(bench: Bench) -> None:
    with bench.server("stubborn") as server:
        server.wait()
        pid, started = server.pid, time.monotonic()
    assert not alive(pid)
    assert 0.4 < time.monotonic() - started < 5


def test_children_of_a_dead_server_go_with_it(bench: Bench) -> None:
    """They would hold the GPU; nobody has to call stop for it."""
    with bench.server("forks") as server:
        server.wait()
        pids = offspring(bench.folder)
        os.kill(server.pid, signal.SIGSEGV)
        assert until(server.poll)
        assert "signal 11 (SIGSEGV)" in server.poll()
        assert until(lambda: not any(map(alive, pids))), "children outlive the server"


def test_a_killed_supervisor_is_noticed_and_swept_after(bench: Bench) -> None:
    with bench.server("forks") as server:
        server.wait()
        pids = [server.pid, *offspring(bench.folder)]
        os.kill(supervise.parents()[server.pid], signal.SIGKILL)
        assert until(lambda: not alive(pids[0])), "the kernel ends the server with its supervisor"
        assert until(server.poll)
        assert "lost its supervisor" in server.poll()
    assert not [pid for pid in pids if alive(pid)]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("forked", [False, True])
def test_nothing_outlives_a_killed_launcher(tmp_path: Path, how: signal.Signals, forked: bool) -> None:
    """Also while a fork of the launcher holds its end of the pipe open."""
    port = free_port()
    command = [sys.executable, str(HERE / "launcher.py"), str(tmp_path), str(port), *(["fork"] if forked else [])]
    env = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    launcher = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    try:
        assert until((tmp_path / "ready").exists, 30), "the launcher did not get so far"
        pids = [int((tmp_path / "ready").read_text()), *offspring(tmp_path)]
        pids.append(supervise.parents()[pids[0]])
        assert all(map(alive, pids))
        launcher.send_signal(how)
        launcher.wait(10)
        assert until(lambda: not any(map(alive, pids)), 15), f"left: {[pid for pid in pids if alive(pid)]}"
        assert not listening(port)
    finally:
        launcher.kill()
        launcher.wait()
        if forked:
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                os.kill(int((tmp_path / "fork").read_text()), signal.SIGKILL)
