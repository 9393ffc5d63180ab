"""TLS: one certificate encrypts HTTP and gRPC."""

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
from service.api.tls import Certificate
from service.bench.process import free_port
from service.errors import WrongOption
from service.settings import Settings

MESSAGES = Messages()


@dataclass(frozen=True)
class Papers:
    """A certificate of this machine, as files, and whom one must trust for it."""

    key: Path
    chain: Path
    authority: Path

    @property
    def settings(self) -> dict[str, Path]:
        """The settings for it."""
        return {"tls_key_file": self.key, "tls_cert_file": self.chain}

    @property
    def mutual(self) -> dict[str, Path]:
        """The same, with client certificates required."""
        return {**self.settings, "tls_client_ca_file": self.authority}

    def trust(self) -> ssl.SSLContext:
        """The certificates of an HTTP client."""
        context = ssl.create_default_context(cafile=str(self.authority))
        context.load_cert_chain(self.chain, self.key)
        return context

    def credentials(self, *, shown: bool) -> grpc.ChannelCredentials:
        """The certificates of a gRPC client."""
        pair = (self.key.read_bytes(), self.chain.read_bytes()) if shown else (None, None)
        return grpc.ssl_channel_credentials(self.authority.read_bytes(), *pair)

    def serve(self, settings: dict[str, Path], port: int) -> AbstractContextManager[Hosted]:
        """Serve HTTP and gRPC with these settings."""
        return hosting(trust=self.trust(), grpc_port=port, **settings)


def papers_in(folder: Path) -> Papers:
    folder.mkdir(exist_ok=True)
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
    others = papers_in(tmp_path / "others")
    with caplog.at_level("INFO"), papers.serve(papers.settings, port) as ours:
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
        papers.serve({"tls_cert_file": both}, port),
        grpc.secure_channel(f"{HOST}:{port}", papers.credentials(shown=False)) as channel,
    ):
        assert live(channel) == grpc.StatusCode.OK


def test_without_a_certificate_there_is_none() -> None:
    assert Certificate.read(Settings()) is None


@pytest.mark.parametrize("name", ["tls_key_file", "tls_client_ca_file"])
def test_the_other_files_need_a_certificate(name: str, papers: Papers) -> None:
    with pytest.raises(WrongOption, match="need --tls-cert-file"):
        Certificate.read(Settings.model_validate({name: papers.key}))


@pytest.mark.parametrize(
    ("setting", "file", "sentence"),
    [
        ("tls_cert_file", "absent.pem", "cannot read the TLS file .*absent.pem: No such file"),
        ("tls_key_file", "absent.pem", "cannot read the TLS file .*absent.pem: No such file"),
        ("tls_client_ca_file", "absent.pem", "cannot read the TLS file .*absent.pem: No such file"),
        ("tls_cert_file", "key.pem", "no PEM certificate with its key in .*key.pem and .*key.pem"),
        ("tls_key_file", "others/key.pem", "no PEM certificate with its key in .*mismatch"),
        ("tls_key_file", "secret.pem", "the private key in .*secret.pem is encrypted"),
        ("tls_client_ca_file", "key.pem", "no PEM certificates in .*key.pem"),
    ],
)
def test_unusable_files_are_an_error(
    setting: str, file: str, sentence: str, papers: Papers, tmp_path: Path
) -> None:
    others = papers_in(tmp_path / "others")
    encrypted = b"-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC," + b"0" * 32 + b"\n\n"
    (tmp_path / "secret.pem").write_bytes(others.key.read_bytes().replace(b"-----\n", encrypted, 1))
    chosen = Settings.model_validate({**papers.mutual, setting: tmp_path / file})
    with pytest.raises(WrongOption, match=sentence):
        Certificate.read(chosen)
