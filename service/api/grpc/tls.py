"""The TLS certificate of uvicorn's options, for the gRPC server."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from service.errors import WrongOption


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate chain and its key, in PEM."""

    chain: bytes
    key: bytes
    client_authorities: bytes | None = None
    """Authorities, one of which signs each client's certificate; None asks for no certificate."""

    @classmethod
    def read(cls, passed: Mapping[str, Any]) -> Self | None:
        """Read the certificate that uvicorn's options name, if any.

        Raises `WrongOption` for files that uvicorn could not read either, and for a key with a
        password, which gRPC cannot read.
        """
        if not (chain := passed.get("ssl_certfile")):
            return None
        if passed.get("ssl_keyfile_password"):
            raise WrongOption("gRPC needs a key without a password; or give --grpc-port 0")
        key = passed.get("ssl_keyfile") or chain
        return cls(_pem(chain), _pem(key), _client_authorities(passed))


def _client_authorities(passed: Mapping[str, Any]) -> bytes | None:
    if passed.get("ssl_cert_reqs") != ssl.CERT_REQUIRED:
        return None
    if not (authorities := passed.get("ssl_ca_certs")):
        raise WrongOption("uvicorn: --ssl-cert-reqs 2 is of no use without --ssl-ca-certs")
    return _pem(authorities)


def _pem(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise WrongOption(f"uvicorn: the certificate or its key cannot be read: {error}") from error
