"""The server: how it leaves, TLS, proxies, and the probes' own port."""

import asyncio
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx2
import pytest
import trustme
import uvicorn
from attacks import HOST, LAST_LIVEZ, PATIENCE, Reply, post, speak
from conftest import fake_backend, in_thread, wait_ready
from grpc_health.v1 import health_pb2, health_pb2_grpc
from test_classify import Gate, assert_problem, plain
from test_connections import hosting

from service.bench.process import free_port
from service.errors import CannotListen
from service.server.app import create_app
from service.server.http_server import configure
from service.server.listeners import dual_stack, probes
from service.server.uvicorn_server import Application, Server
from service.serving.metrics.metrics import Metrics
from service.settings import Settings

# Leaving.


@pytest.mark.parametrize("drain", [0.0, 1.0])
def test_requests_are_accepted_during_the_drain_time(
    drain: float, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(
        Settings(model="fake"),
        load=lambda *_: fake_backend(),
        is_leaving=lambda: server.is_leaving,
    )
    config = uvicorn.Config(app, log_config=None, access_log=False)
    server = Server(
        config, drain, application=Application(leave=lambda: shut.append(time.monotonic()))
    )
    shut: list[float] = []
    with closing(socket.create_server(("127.0.0.1", 0))) as listener, caplog.at_level("INFO"):
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        with httpx2.Client(base_url=base) as client:
            wait_ready(client)
            assert not server.is_leaving
            server.handle_exit(signal.SIGTERM, None)
            told = time.monotonic()
            assert server.is_leaving
            if drain:
                answer = client.get("/readyz?verbose")
                assert answer.status_code == 503
                assert "[-]stop the service is stopping" in answer.text
                assert answer.headers["connection"] == "close"
                assert client.get("/models").status_code == 200
        thread.join(20)
    assert not thread.is_alive()
    (at,) = shut
    assert drain <= at - told <= time.monotonic() - told
    assert caplog.messages.count(f"stopping, accepting requests for {drain:g} s more") == 1


# TLS and proxies.


@dataclass(frozen=True)
class Certificate:
    """The settings for a certificate, and whom a client must trust for it."""

    settings: dict[str, Path]
    trust: ssl.SSLContext


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    """A certificate of this machine."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", HOST)
    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
    issued.private_key_pem.write_to_path(str(key))
    for pem in issued.cert_chain_pems:
        pem.write_to_path(str(chain), append=True)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    return Certificate({"tls_key_file": key, "tls_cert_file": chain}, trust)


def test_responses_and_refusals_over_tls(certificate: Certificate) -> None:
    with hosting(trust=certificate.trust, **certificate.settings) as ours:
        base = f"https://{HOST}:{ours.port}"
        with httpx2.Client(base_url=base, verify=certificate.trust) as client:
            answer = client.post("/classify", files={"file": plain("red")})
            assert answer.json()["predictions"][0]["label"] == "red"
            assert client.get("/livez").status_code == 200
            refused = client.get("/livez", headers=[("x", "y")] * 200)
            assert_problem(refused, 431, "head_too_large")
            assert client.get("/livez").status_code == 200
        with pytest.raises(httpx2.TransportError):
            httpx2.get(f"http://{HOST}:{ours.port}/livez")


def test_a_half_closed_tls_connection_is_dropped(certificate: Certificate) -> None:
    with hosting(trust=certificate.trust, **certificate.settings) as ours:
        plain_socket = socket.create_connection((HOST, ours.port), 20)
        with certificate.trust.wrap_socket(plain_socket, server_hostname="localhost") as caller:
            caller.sendall(b"GET /livez HTTP/1.1\r\n")
            caller.unwrap().close()
        again = httpx2.get(f"https://{HOST}:{ours.port}/livez", verify=certificate.trust)
        assert again.status_code == 200


@pytest.mark.parametrize(
    ("trusted", "scheme"),
    [("127.0.0.0/8", "https"), ("*", "https"), ("10.0.0.1", "http"), ("", "http")],
)
def test_headers_of_trusted_proxies_are_used(trusted: str, scheme: str) -> None:
    with hosting(trusted_proxies=trusted) as ours:
        forwarded = {"X-Forwarded-Proto": "https"}
        answer = httpx2.get(f"http://{HOST}:{ours.port}/models/", headers=forwarded)
    assert answer.headers["location"] == f"{scheme}://{HOST}:{ours.port}/models"


def test_requests_are_served_below_a_root_path() -> None:
    """The proxy removes the path; uvicorn adds it to what the application gets."""
    with (
        hosting(fake_backend(seconds_per_row=1), root_path="/vision") as ours,
        httpx2.Client(base_url=f"http://{HOST}:{ours.port}") as client,
    ):
        assert client.get("/openapi.json").json()["servers"] == [{"url": "/vision"}]
        assert client.get("/models").status_code == 200
        answer = client.post("/classify?views=single", files={"file": plain("red")})
        assert answer.json()["predictions"][0]["label"] == "red"
        assert client.post("/classify?views=paper", content=b"").status_code == 504  # at the gate


# Probes on a port of their own.

PROBES = ("/livez", "/readyz", "/startupz", "/metrics")


def test_probes_have_a_separate_port_if_set(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        caplog.at_level("INFO"),
        hosting(probe_port=free_port()) as ours,
        httpx2.Client(base_url=f"http://{HOST}:{ours.port}") as main,
        httpx2.Client(base_url=f"http://{HOST}:{ours.probe_port}") as probes,
    ):
        assert [probes.get(path).status_code for path in PROBES] == [200] * 4
        for path in PROBES:
            assert_problem(main.get(path), 404, "not_found")
        assert main.get("/models").status_code == 200
        assert main.post("/classify", files={"file": plain("red")}).status_code == 200
        for path in ("/models", "/docs", "/", "/classify"):
            assert_problem(probes.get(path), 404, "not_found")
        assert_problem(probes.post("/classify", files={"file": plain("red")}), 404, "not_found")
    told = f"probes and metrics are on port {ours.probe_port} of {HOST}"
    assert caplog.messages.count(told) == 1


def test_the_probe_port_has_no_tls(certificate: Certificate) -> None:
    with hosting(probe_port=free_port(), **certificate.settings) as ours:
        assert httpx2.get(f"http://{HOST}:{ours.probe_port}/livez").status_code == 200
        models = httpx2.get(f"https://{HOST}:{ours.port}/models", verify=certificate.trust)
        assert models.status_code == 200


def test_probes_are_answered_when_connections_are_used_up() -> None:
    gate = Gate()
    with hosting(fake_backend(gate), max_connections=2, probe_port=free_port()) as ours:

        async def crowd() -> tuple[Reply, Reply, list[Reply]]:
            with gate.shut():
                asking = [
                    asyncio.create_task(speak(ours.port, [post(plain("red"), "Connection: close")]))
                    for _ in range(2)
                ]
                await asyncio.to_thread(gate.entered.wait, PATIENCE)
                await asyncio.sleep(0.3)
                probed = await speak(ours.probe_port, [LAST_LIVEZ])
                other = await speak(ours.port, [LAST_LIVEZ])
            return probed, other, await asyncio.gather(*asking)

        probed, other, answered = asyncio.run(crowd())
    assert probed.statuses == [200]
    assert other.data == b""
    assert [reply.statuses for reply in answered] == [[200], [200]]


@pytest.mark.parametrize(("setting", "purpose"), [("probe_port", "probes"), ("grpc_port", "gRPC")])
def test_a_port_in_use_is_an_error(setting: str, purpose: str) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        told = f"cannot bind port {port} of {HOST} for {purpose}: Address already in use"
        chosen = Settings(host=HOST).model_copy(update={setting: port})
        with pytest.raises(CannotListen, match=told), probes(chosen):
            pass


def test_a_404_names_the_prefix_that_a_proxy_has_to_remove() -> None:
    with hosting(root_path="/vision") as ours:
        base = f"http://{HOST}:{ours.port}"
        assert httpx2.get(f"{base}/models").status_code == 200
        left_in = assert_problem(httpx2.get(f"{base}/vision/models"), 404, "not_found")
        assert "prefix before /models" in left_in["detail"]
        forwarded = {"X-Forwarded-Prefix": "/other"}
        document = httpx2.get(f"{base}/openapi.json", headers=forwarded).json()
        assert document["servers"] == [{"url": "/vision"}]


needs_ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")


@contextmanager
def everywhere(caplog: pytest.LogCaptureFixture) -> Iterator[Settings]:
    """Serve a fake model on every address, by three ports, as `serve` does."""
    chosen = Settings(
        model="fake", host="::", probe_port=free_port(), grpc_port=free_port(), port=0
    )
    metrics = Metrics()
    app = create_app(chosen, load=lambda *_: fake_backend(), metrics=metrics)
    config = configure(chosen, app, metrics)
    with (
        caplog.at_level("INFO"),
        probes(chosen) as probe_listener,
        dual_stack(chosen) as sockets,
    ):
        assert sockets is not None
        server = Server(config, 0.0, probe_listener)
        with in_thread(server, sockets[0]) as port:
            with httpx2.Client(base_url=f"http://127.0.0.1:{chosen.probe_port}") as client:
                wait_ready(client)
            yield chosen.model_copy(update={"port": port})


@needs_ipv6
def test_dual_stack_listens_on_ipv4_and_ipv6_for_each_port(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with everywhere(caplog) as chosen:
        for host in ("127.0.0.1", "[::1]"):
            assert httpx2.get(f"http://{host}:{chosen.port}/models").status_code == 200
            assert httpx2.get(f"http://{host}:{chosen.probe_port}/livez").status_code == 200
            with grpc.insecure_channel(f"{host}:{chosen.grpc_port}") as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                asked = health_pb2.HealthCheckRequest()
                assert (
                    stub.Check(asked, timeout=10).status == health_pb2.HealthCheckResponse.SERVING
                )
    told = f"Uvicorn running on http://[::]:{chosen.port} (Press CTRL+C to quit)"
    assert caplog.messages.count(told) == 1


@needs_ipv6
def test_a_port_in_use_on_ipv4_is_an_error_for_dual_stack() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        chosen = Settings(host="::", port=taken.getsockname()[1])
        with pytest.raises(CannotListen, match="for HTTP: Address"), dual_stack(chosen):
            pass


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_uvicorn_listens_on_other_addresses(host: str) -> None:
    with dual_stack(Settings(host=host)) as sockets:
        assert sockets is None
