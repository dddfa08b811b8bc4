"""Rows T1, T2 and T19..T21 of the fault table: servers that die or are not there, and names, certificates and proxies before them."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mxfp4_validate.endpoint.address import parse_address
from mxfp4_validate.errors import IncompleteRun
from tests.fault_rig import KEY, blackhole, by_number, cli, planned, run, unused_port, write_questions
from tests.fault_server import Act, FaultServer, answer

SERVER = r"""
import sys, time
from tests.fault_rig import number_of
from tests.fault_server import FaultServer, answer
def plan(number, request):
    if number >= int(sys.argv[2]):
        print("enough", flush=True)
        time.sleep(60)
    i = number_of(request.text)
    return answer(rf"After {i} comes \boxed{{{i + (i % 3 != 0)}}}")
with FaultServer(plan, port=int(sys.argv[1])) as server:
    print(server.port, flush=True)
    time.sleep(100)
"""


def good(i: int) -> Act:
    return answer(rf"One more than {i}: \boxed{{{i + 1}}}")


def serve(port: int, stop_after: int = 10**9) -> subprocess.Popen[str]:
    """A server process; it says its port, and "enough" once it stops answering."""
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(port), str(stop_after)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert int(process.stdout.readline())
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def table(outcome):
    return {name: (sample.state, sample.content, name in outcome.right) for name, sample in outcome.samples.items()}


def test_t01_server_killed_and_the_run_resumed(tmp_path):
    """SIGKILL after 288 of 480 answers: the run says so, scores nothing, and the resumed one equals one that was never disturbed."""
    port, plan = unused_port(), planned(480)
    first = serve(port, 288)
    killer = threading.Thread(target=lambda: first.stdout.readline() and first.send_signal(signal.SIGKILL))
    killer.start()
    cut = run(f"http://127.0.0.1:{port}/v1", tmp_path / "cut", plan, concurrency=16, breaker=16)
    killer.join()
    kill(first)
    assert (cut.status, cut.kind) == (5, "gave-up")
    answered = {name for name, state in cut.states.items() if state == "answered"}
    assert 288 - 16 <= len(answered) <= 288  # what was on its way when the server died is lost
    assert set(cut.states.values()) <= {"answered", "transport_error"}
    assert len(cut.states) < 400  # it stopped asking
    assert "outage" in cut.kinds()
    second = serve(port)
    resumed = run(f"http://127.0.0.1:{port}/v1", tmp_path / "cut", plan, concurrency=16)
    whole = run(f"http://127.0.0.1:{port}/v1", tmp_path / "whole", plan, concurrency=16)
    kill(second)
    assert (resumed.status, whole.status) == (0, 0)
    assert table(resumed) == table(whole)
    assert len(resumed.right) == 320
    assert [s.at for n, s in resumed.samples.items() if n in answered] == [s.at for n, s in cut.samples.items() if n in answered]


def test_t01_server_back_within_the_outage(tmp_path):
    """A server that is restarted while the run waits costs nothing but time."""
    port = unused_port()
    first = serve(port, 60)
    later: list[subprocess.Popen[str]] = []

    def restart() -> None:
        first.stdout.readline()
        first.send_signal(signal.SIGKILL)
        first.wait()
        later.append(serve(port))

    thread = threading.Thread(target=restart)
    thread.start()
    outcome = run(f"http://127.0.0.1:{port}/v1", tmp_path, planned(120), concurrency=16, breaker=4, outage=30)
    thread.join()
    kill(first)
    kill(later[0])
    assert outcome.status == 0
    assert set(outcome.states.values()) == {"answered"}
    assert {"outage"} <= set(outcome.kinds())
    assert len({sample.boot for sample in outcome.samples.values()}) == 2


def test_t02_nobody_there(tmp_path):
    questions = write_questions(tmp_path / "q.jsonl", 4)
    url = f"http://127.0.0.1:{unused_port()}/v1"
    started = time.monotonic()
    done = cli("eval", "gsm8k", "--base-url", url, "--questions", questions, "--out", tmp_path / "out")
    assert time.monotonic() - started < 10
    assert done.returncode == 5
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert f"no server at {url}" in line
    assert "Traceback" not in done.stderr


def test_t19_name_that_does_not_resolve(tmp_path):
    """One line, and since the address is not this machine's and a key is set, a warning that it would go unencrypted (T20)."""
    questions = write_questions(tmp_path / "q.jsonl", 4)
    url = "http://no-such-host.invalid:9/v1"
    done = cli("eval", "gsm8k", "--base-url", url, "--questions", questions, "--out", tmp_path / "out", env={"OPENAI_API_KEY": KEY})
    assert done.returncode == 5
    assert f"no server at {url}" in done.stderr
    assert "the API key goes to http://no-such-host.invalid:9 unencrypted" in done.stderr
    assert KEY not in done.stderr + done.stdout


def test_t19_connecting_hangs(tmp_path):
    started = time.monotonic()
    with blackhole() as port, pytest.raises(IncompleteRun, match="no server at"):
        run(f"http://127.0.0.1:{port}/v1", tmp_path)
    assert time.monotonic() - started < 8


def test_t19_the_first_of_two_addresses_hangs(tmp_path, monkeypatch):
    """A name whose first address is dead, as ::1 often is, works through the second."""
    ask = socket.getaddrinfo

    def both(host, port, family=0, *args, **kwargs):
        names = ("127.0.0.2", "127.0.0.1") if host in ("twofold.test", b"twofold.test") else (host,)
        return [entry for name in names for entry in ask(name, port, family, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    with FaultServer(by_number(good)) as server, blackhole("127.0.0.2", server.port):
        outcome = run(f"http://twofold.test:{server.port}/v1", tmp_path)
    assert outcome.status == 0
    assert len(server.requests) == 4


def certificate(folder: Path, name: str = "127.0.0.1", expired: bool = False) -> tuple[ssl.SSLContext, Path]:
    """A self-signed certificate for an address, and a server's context with it."""
    key, cert, request, extra = (folder / name for name in ("key.pem", "cert.pem", "request.pem", "extra.cnf"))
    extra.write_text(f"subjectAltName=IP:{name}\n")

    def openssl(*args: object) -> bool:
        return subprocess.run(["openssl", *map(str, args)], capture_output=True, check=False).returncode == 0

    assert openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-out", key)
    assert openssl("req", "-new", "-key", key, "-subj", "/CN=test", "-out", request)
    sign = ("x509", "-req", "-in", request, "-signkey", key, "-extfile", extra, "-out", cert)
    past = ("-not_before", "20200101000000Z", "-not_after", "20200102000000Z")  # since OpenSSL 3.4; older ones take negative days
    assert (openssl(*sign, *past) or openssl(*sign, "-days", "-1")) if expired else openssl(*sign, "-days", "2")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context, cert


@pytest.mark.parametrize(
    ("kwargs", "trusted", "why"),
    [
        ({}, False, "self.signed"),
        ({"expired": True}, True, "expired"),
        ({"name": "192.0.2.7"}, True, "mismatch|not valid for|doesn't match"),
    ],
)
def test_t20_certificates_are_checked(kwargs, trusted, why, tmp_path):
    context, cert = certificate(tmp_path, **kwargs)
    with FaultServer(by_number(good), tls=context) as server, pytest.raises(IncompleteRun, match=why):
        run(server.url, tmp_path / "out", ca_file=cert if trusted else None)
    assert server.requests == server.others == []


def test_t20_private_authority(tmp_path):
    context, cert = certificate(tmp_path)
    with FaultServer(by_number(good), tls=context) as server:
        outcome = run(server.url, tmp_path / "out", ca_file=cert)
    assert outcome.status == 0
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.fixture
def proxied(monkeypatch):
    with FaultServer(by_number(good)) as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://user:word@127.0.0.1:{proxy.port}")
            monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        yield proxy


def test_t21_loopback_is_never_proxied(proxied, tmp_path):
    with FaultServer(by_number(good)) as server:
        outcome = run(server.url, tmp_path)
    assert outcome.status == 0
    assert proxied.requests == proxied.others == []
    assert not any("proxy" in line for line in outcome.said)


def test_t21_the_proxy_in_use_is_named(proxied, monkeypatch, tmp_path):
    """Without its password. A request through a proxy has an absolute URL, which this one refuses."""
    address = parse_address("http://no-such-host.invalid/v1")
    assert address.proxy == f"http://127.0.0.1:{proxied.port}"
    monkeypatch.setenv("no_proxy", "no-such-host.invalid")
    assert address.proxy == ""
    monkeypatch.delenv("no_proxy")
    done = cli("eval", "gsm8k", "--base-url", address.api, "--questions", write_questions(tmp_path / "q.jsonl", 2), "--out", tmp_path / "o")
    assert done.returncode != 0
    assert f"asked through the proxy http://127.0.0.1:{proxied.port}" in done.stderr
    assert "word" not in done.stderr
    assert [request.path for request in proxied.others][:1] == ["http://no-such-host.invalid/v1/models"]
    assert proxied.requests == []
