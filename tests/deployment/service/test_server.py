"""The service on a socket: hostile requests, slow clients, and an end that loses nothing."""

import concurrent.futures
import http.client
import json
import signal
import socket
import threading
import time

import pytest
from services import TOKEN, listening, make, picture

from kmed.deployment import serving
from kmed.deployment.service import server
from kmed.deployment.service.limits import Limits

HEADERS = {"Content-Type": "image/png", "Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def service(short_run):
    """A service that is impatient, so that slow clients are refused at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "HEADERS_SECONDS", 0.5)
        yield make(short_run, max_body=1, max_pictures=4, timeout=5.0)


@pytest.fixture(scope="module")
def address(service):
    with listening(service, TOKEN) as running:
        yield running.address


def ask(address, content=None, *, connection=None):
    """Returns (status, body) of a request with one picture."""
    connection = connection or http.client.HTTPConnection(*address, timeout=60)
    connection.request("POST", "/v1/predict", picture() if content is None else content, HEADERS)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def test_hostile_requests_get_4xx_and_the_service_lives(script, address, service):
    hostile = script("hostile_requests")
    requests = list(hostile.hostile_requests(TOKEN, max_body=1, max_pictures=4))
    assert len(requests) >= 60
    once = [request for request in requests if request.times == 1]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        statuses = dict(zip((one.name for one in once), pool.map(lambda one: hostile.send(address, one), once)))
    assert {name: status for name, status in statuses.items() if not 400 <= status < 500} == {}
    (empty,) = (request for request in requests if request.times > 1)
    assert {hostile.send(address, empty) for _ in range(50)} == {400}
    assert ask(address)[0] == 200 and service.room.requests == service.room.bytes == 0


def test_a_slow_body_is_told_why(address):
    with socket.create_connection(address, timeout=60) as connection:
        head = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
        connection.sendall(f"POST /v1/predict HTTP/1.1\r\nHost: x\r\n{head}Content-Length: 10\r\n\r\nx".encode())
        received = connection.makefile("rb").read()
    assert received.startswith(b"HTTP/1.1 408 ") and b"was not complete after 5 seconds" in received
    assert b"connection: close" in received


def test_a_connection_is_used_for_many_requests_and_pipelined_ones(address):
    connection = http.client.HTTPConnection(*address, timeout=60)
    assert [ask(address, connection=connection)[0] for _ in range(3)] == [200] * 3
    assert ask(address, b"x", connection=connection)[0] == 422
    assert ask(address, b"x" * 10**6 + b"x", connection=connection)[0] == 413
    with socket.create_connection(address, timeout=60) as raw:
        raw.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        received = b""
        while received.count(b'{"status":"ok"}') < 3:
            received += raw.recv(4096)


def test_the_end_answers_what_has_been_received_and_what_is_on_its_way(short_run, monkeypatch):
    """Requests that wait when the end begins, and one that comes on an open connection after it, get their answers."""
    monkeypatch.setattr(server, "LINGER_SECONDS", 60.0)
    service = make(short_run)
    held, answer = threading.Event(), service.batcher._answer
    service.batcher._answer = lambda names, pictures: held.wait() and answer(names, pictures)
    with concurrent.futures.ThreadPoolExecutor(8) as pool, listening(service) as running:
        idle = http.client.HTTPConnection(*running.address, timeout=60)
        idle.request("GET", "/healthz")
        assert idle.getresponse().read() == b'{"status":"ok"}'
        open_ones = [http.client.HTTPConnection(*running.address, timeout=60) for _ in range(6)]
        waiting = [pool.submit(ask, running.address, connection=connection) for connection in open_ones]
        wait_until(lambda: service.room.requests == 6)
        running.handle_exit(signal.SIGTERM, None)
        wait_until(lambda: not is_open(running.address))
        late = pool.submit(ask, running.address, connection=idle)
        wait_until(lambda: service.room.requests == 7)
        held.set()
        assert [future.result()[0] for future in [*waiting, late]] == [200] * 7
        # Each last answer said that the connection ends: no client sends another request there.
        assert [connection.sock for connection in [*open_ones, idle]] == [None] * 7
    assert not service.batcher.is_alive


def wait_until(condition) -> None:
    """Returns as soon as the server's thread has made a condition true."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end


def is_open(address) -> bool:
    try:
        socket.create_connection(address).close()
    except ConnectionError:
        return False
    return True


def test_an_answer_has_its_own_picture_under_load(address, short_run, service):
    """Each client's answers are those to its own pictures, however batches mix them."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        contents = [picture(seed) for seed in range(40)]
        found = list(pool.map(lambda content: ask(address, content)[1]["answers"][0]["probs"], contents))
    alone = [ask(address, content)[1]["answers"][0]["probs"] for content in contents]
    assert [pytest.approx(probs, abs=1e-6) for probs in alone] == found


def test_a_service_that_is_open_to_others_without_a_token_warns(short_run, monkeypatch, caplog):
    monkeypatch.setattr(server.Server, "run", lambda self, sockets: None)
    model = {"format": "keras", "quantize": "none", "batch_size": 1}
    for host, token, warns in (("0.0.0.0", None, True), ("0.0.0.0", TOKEN, False), ("127.0.0.1", None, False)):
        caplog.clear()
        with serving.bound(host, 0) as listener:
            server.run_server(short_run, listener, Limits(), token, **model)
        assert ("anyone may send pictures" in caplog.text) == warns
