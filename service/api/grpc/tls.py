"""The certificate that uvicorn was given, for whatever listens beside it."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from service.errors import WrongOption


@dataclass(frozen=True, slots=True)
class Certificate:
    """A chain of certificates and its key, as PEM files hold them."""

    chain: bytes
    key: bytes
    callers: bytes | None = None
    """Authorities, of which one has to have signed the caller's certificate; else it needs none."""

    @classmethod
    def read(cls, passed: Mapping[str, Any]) -> Self | None:
        """Read what uvicorn's options name, if they name one.

        Raises `WrongOption` for what uvicorn itself could not do either, and for a key with a
        password, which nothing but uvicorn can read.
        """
        if not (chain := passed.get("ssl_certfile")):
            return None
        if passed.get("ssl_keyfile_password"):
            raise WrongOption("gRPC needs a key without a password; or give --grpc-port 0")
        key = passed.get("ssl_keyfile") or chain
        return cls(_pem(chain), _pem(key), _callers(passed))


def _callers(passed: Mapping[str, Any]) -> bytes | None:
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
