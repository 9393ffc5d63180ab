"""The TLS certificate of HTTP and gRPC."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from service.errors import WrongOption
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate chain and its key, in PEM."""

    chain: bytes
    key: bytes
    client_authorities: bytes | None = None
    """Authorities, one of which signs each client's certificate; None asks for no certificate."""

    @classmethod
    def read(cls, settings: Settings) -> Self | None:
        """Read the files of the settings, if any; raises `WrongOption` if they cannot be used."""
        chain, authorities = settings.tls_cert_file, settings.tls_client_ca_file
        if chain is None:
            if settings.tls_key_file or authorities:
                raise WrongOption("--tls-key-file and --tls-client-ca-file need --tls-cert-file")
            return None
        key = settings.tls_key_file or chain
        read = cls(_pem(chain), _pem(key), _pem(authorities) if authorities else None)
        _check(chain, key, authorities)
        return read


def _pem(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WrongOption(f"cannot read the TLS file {path}: {error.strerror}") from error


def _check(chain: Path, key: Path, authorities: Path | None) -> None:
    """Raise `WrongOption` if a server could not load these files."""

    def password() -> str:  # without it, OpenSSL would ask on the terminal
        raise WrongOption(f"the private key in {key} is encrypted; store it without a password")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(chain, key, password)
    except ssl.SSLError as error:
        raise WrongOption(
            f"no PEM certificate with its key in {chain} and {key}: {error}"
        ) from error
    if authorities:
        try:
            context.load_verify_locations(authorities)
        except ssl.SSLError as error:
            raise WrongOption(f"no PEM certificates in {authorities}: {error}") from error
