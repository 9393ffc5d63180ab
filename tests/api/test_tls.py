"""TLS: uvicorn's certificate encrypts gRPC, too."""

import ssl
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx2
import pytest
import trustme
from attacks import HOST
from test_connections import Hosted, hosting

from service.api.grpc.messages import Messages
from service.api.grpc.tls import Certificate
from service.bench.process import free_port
from service.errors import WrongOption
from service.server.uvicorn_options import parse

MESSAGES = Messages()


@dataclass(frozen=True)
class Papers:
    """A certificate of this machine, as files, and whom one must trust for it."""

    key: Path
    chain: Path
    authority: Path

    @property
    def flags(self) -> list[str]:
        """The options of uvicorn for it."""
        return ["--ssl-keyfile", str(self.key), "--ssl-certfile", str(self.chain)]

    @property
    def mutual(self) -> list[str]:
        """The same, with client certificates required."""
        return [*self.flags, "--ssl-ca-certs", str(self.authority), "--ssl-cert-reqs", "2"]

    def trust(self) -> ssl.SSLContext:
        """The certificates of an HTTP client."""
        context = ssl.create_default_context(cafile=str(self.authority))
        context.load_cert_chain(self.chain, self.key)
        return context

    def credentials(self, *, shown: bool) -> grpc.ChannelCredentials:
        """The certificates of a gRPC client."""
        pair = (self.key.read_bytes(), self.chain.read_bytes()) if shown else (None, None)
        return grpc.ssl_channel_credentials(self.authority.read_bytes(), *pair)

    def serve(self, flags: list[str], port: int) -> AbstractContextManager[Hosted]:
        """Serve HTTP and gRPC with these options."""
        return hosting(flags=flags, trust=self.trust(), grpc_port=port)


def papers_in(folder: Path) -> Papers:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", HOST)
    made = Papers(folder / "key.pem", folder / "chain.pem", folder / "authority.pem")
    issued.private_key_pem.write_to_path(str(made.key))
    issued.cert_chain_pems[0].write_to_path(str(made.chain))
    authority.cert_pem.write_to_path(str(made.authority))
    return made


@pytest.fixture
def papers(tmp_path: Path) -> Papers:
    """A certificate of this machine."""
    return papers_in(tmp_path)


def live(channel: grpc.Channel) -> grpc.StatusCode:
    """Call a method that needs no key."""
    asked = MESSAGES.make("ServerLiveRequest").SerializeToString()
    call = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
    try:
        assert MESSAGES.read("ServerLiveResponse", call(asked, timeout=20)).live
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


def test_grpc_is_encrypted_with_the_certificate_of_http(
    papers: Papers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    (tmp_path / "others").mkdir()
    others = papers_in(tmp_path / "others")
    with caplog.at_level("INFO"), papers.serve(papers.flags, port) as ours:
        with httpx2.Client(base_url=f"https://{HOST}:{ours.port}", verify=papers.trust()) as client:
            assert client.get("/livez").status_code == 200
        with grpc.secure_channel(f"{HOST}:{port}", papers.credentials(shown=False)) as channel:
            assert live(channel) == grpc.StatusCode.OK
        with grpc.secure_channel(f"{HOST}:{port}", others.credentials(shown=False)) as channel:
            assert live(channel) == grpc.StatusCode.UNAVAILABLE
        with grpc.insecure_channel(f"{HOST}:{port}") as channel:
            assert live(channel) == grpc.StatusCode.UNAVAILABLE
    assert f"gRPC listens on port {port} of {HOST}, over TLS" in caplog.messages


def test_client_certificates_are_required_for_grpc_as_for_http(papers: Papers) -> None:
    port = free_port()
    with papers.serve(papers.mutual, port):
        for shown, code in ((True, grpc.StatusCode.OK), (False, grpc.StatusCode.UNAVAILABLE)):
            credentials = papers.credentials(shown=shown)
            with grpc.secure_channel(f"{HOST}:{port}", credentials) as channel:
                assert live(channel) == code


def test_one_file_may_hold_both(papers: Papers, tmp_path: Path) -> None:
    both, port = tmp_path / "both.pem", free_port()
    both.write_bytes(papers.key.read_bytes() + papers.chain.read_bytes())
    with (
        papers.serve(["--ssl-certfile", str(both)], port),
        grpc.secure_channel(f"{HOST}:{port}", papers.credentials(shown=False)) as channel,
    ):
        assert live(channel) == grpc.StatusCode.OK


@pytest.mark.parametrize("flags", [[], ["--ssl-keyfile", "key.pem"]])
def test_without_a_certificate_there_is_none(flags: list[str]) -> None:
    assert Certificate.read(parse(flags)) is None


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--ssl-keyfile-password", "secret"], "a key without a password; or give --grpc-port 0"),
        (["--ssl-cert-reqs", "2"], "of no use without --ssl-ca-certs"),
        (["--ssl-certfile", "absent.pem"], "the certificate or its key cannot be read"),
        (["--ssl-keyfile", "absent.pem"], "the certificate or its key cannot be read"),
        (["--ssl-ca-certs", "absent.pem", "--ssl-cert-reqs", "2"], "cannot be read"),
    ],
)
def test_options_grpc_cannot_use_are_errors(more: list[str], sentence: str, papers: Papers) -> None:
    with pytest.raises(WrongOption, match=sentence):
        Certificate.read(parse([*papers.flags, *more]))
