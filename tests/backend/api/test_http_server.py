"""The HTTP server with real sockets: clients that are slow, silent, many or wrong."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading

import pytest
import requests
from pydantic import SecretStr

from backend.api import http_server
from backend.api.app import create_app
from backend.cli.operate.serve import serve_http
from backend.processes.embedded_redis import free_port
from backend.processes.parent_death import ends_with_parent
from tests.support.service import ROOT, wait_until
from tests.support.slow_clients import UNFINISHED, answers, connections, is_closed

pytestmark = pytest.mark.service


@pytest.mark.parametrize("sent", UNFINISHED.values(), ids=list(UNFINISHED))
def test_200_silent_clients_keep_nobody_waiting_and_are_cut_off(settings, serve, monkeypatch, sent):
    monkeypatch.setattr(http_server, "IDLE_S", 2)
    address = serve(settings)
    with connections(address, 200) as clients:
        for client in clients:
            client.sendall(sent)
        for _ in range(5):
            assert requests.get(f"{address}/health", timeout=60).json()["status"] == "UP"
        wait_until(lambda: all(map(is_closed, clients)))


@pytest.mark.parametrize("sent", [b"POST /predict HTTP/1.1\r\nX-Drip: ", b"\r\n"], ids=["header", "empty lines"])
def test_clients_that_send_single_bytes_are_cut_off(settings, serve, monkeypatch, sent):
    monkeypatch.setattr(http_server, "REQUEST_S", 2)
    address = serve(settings)

    def drip(clients: list[socket.socket]) -> bool:
        for client in clients:
            with contextlib.suppress(OSError):
                client.sendall(b"\n" if sent == b"\r\n" else b"x")
        assert requests.get(f"{address}/health", timeout=60).status_code == 200
        return all(map(is_closed, clients))

    with connections(address, 49) as clients:
        for client in clients:
            client.sendall(sent)
        wait_until(lambda: drip(clients))


def test_a_connection_in_use_is_not_cut_off(settings, serve, monkeypatch):
    """The time runs from one answer to the next request, not from the start."""
    monkeypatch.setattr(http_server, "REQUEST_S", 0.5)
    address = serve(settings)
    with requests.Session() as session:
        for _ in range(300):
            assert session.get(f"{address}/health", timeout=60).headers.get("Connection", "keep-alive") == "keep-alive"


def test_one_client_cannot_hold_all_connections(settings, serve, monkeypatch):
    monkeypatch.setattr(http_server, "CONNECTIONS_PER_CLIENT", 10)
    monkeypatch.setattr(http_server._Channel, "is_limited", staticmethod(lambda host: host == "127.0.0.2"))
    address = serve(settings)
    with connections(address, 30, source="127.0.0.2") as clients:
        wait_until(lambda: sum(map(is_closed, clients)) == 20)
        assert requests.get(f"{address}/health", timeout=60).status_code == 200


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST /setup HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999\r\n\r\n", 413),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"\x00\xff\xfe\r\n\r\n", 400),
    ],
    ids=["body", "header", "length", "two lengths", "encoding", "bytes"],
)
def test_what_is_too_large_or_no_http_is_refused(settings, serve, request_bytes, status):
    with connections(serve(settings), 1) as (client,):
        client.sendall(request_bytes)
        assert client.recv(4096).split()[1] == str(status).encode()


def test_a_server_ends_while_clients_come_and_go(settings):
    """Its thread would keep the process from ending."""
    server = http_server.HttpServer(create_app(settings), settings, "127.0.0.1", 0)
    loop, is_over = threading.Thread(target=server.run), threading.Event()

    def come_and_go() -> None:
        while not is_over.is_set():
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", server.port), 5).close()

    visitors = [threading.Thread(target=come_and_go) for _ in range(8)]
    for thread in (loop, *visitors):
        thread.start()
    server.stop()
    is_over.set()
    for thread in (loop, *visitors):
        thread.join(60)
        assert not thread.is_alive()


def test_a_request_line_that_cannot_be_read_ends_its_connection_quietly(settings, serve, caplog):
    address = serve(settings)
    with connections(address, 1) as (client,):
        client.sendall(b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(4096) == b""
    assert not caplog.records


@pytest.mark.parametrize(
    ("method", "body", "status"), [("GET", b"", b"200"), ("POST", b'{"action": 1}', b"400")], ids=["none", "body"]
)
def test_who_asks_whether_to_go_on_gets_an_answer(settings, serve, method, body, status):
    with connections(serve(settings), 1) as (client,), client.makefile("rb") as answer:
        length = f"Content-Length: {len(body)}\r\nContent-Type: application/json\r\n" if body else ""
        path = "/webhook" if body else "/health"
        client.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n{length}\r\n".encode())
        if body:
            assert answer.readline().split()[1] == b"100"
            answer.readline()
            client.sendall(body)
        assert answer.readline().split()[1] == status


@pytest.mark.parametrize("name", ["Forwarded", "X-Forwarded-For", "X-Real-Ip", "Via"])
def test_what_came_through_a_proxy_is_not_from_this_machine(settings, serve, name):
    answer = requests.post(f"{serve(settings)}/jobs/cancel", headers={name: "10.1.2.3"}, timeout=60)
    assert answer.status_code == 403
    assert "Without a password" in answer.json()["error"]


def test_a_killed_api_gives_its_port_back_at_once(settings):
    port = free_port()
    command = [sys.executable, "-m", "backend.cli", "api", "--port", str(port), "--redis-url", settings.redis_url]
    preexec = ends_with_parent()
    for number in (signal.SIGKILL, signal.SIGTERM):
        with subprocess.Popen(
            [*command, "--model", str(settings.model)], cwd=ROOT, stderr=subprocess.PIPE, preexec_fn=preexec
        ) as api:
            try:
                wait_until(lambda: api.poll() is not None or answers(port))
                assert api.poll() is None, api.stderr.read().decode()
                with connections(f"http://127.0.0.1:{port}", 3):
                    api.send_signal(number)
                    api.wait(60)
            finally:
                api.kill()
    assert api.returncode == 0


@pytest.mark.parametrize(
    ("host", "token", "is_warned"), [("0.0.0.0", "", True), ("0.0.0.0", "secret", False), ("127.0.0.1", "", False)]
)
def test_an_open_service_without_a_password_is_warned_of(settings, monkeypatch, caplog, host, token, is_warned):
    monkeypatch.setattr(http_server.HttpServer, "run_until_signal", lambda self, _: self._close())
    serve_http(settings.model_copy(update={"host": host, "port": 0, "api_token": SecretStr(token)}))
    assert ("asks nobody for a password" in caplog.text) == is_warned
