"""uvicorn's own options: which are passed on, and how the others are refused."""

import pytest
import uvicorn

from service.errors import WrongOption
from service.server.uvicorn_options import parse


def test_only_given_options_are_passed_on() -> None:
    assert parse([]) == {}
    given = (
        "--ssl-keyfile key.pem --ssl-certfile cert.pem --root-path /vision --backlog 4096 "
        "--forwarded-allow-ips 10.0.0.0/8 --no-date-header --header X-Site:north"
    )
    assert parse(given.split()) == {
        "ssl_keyfile": "key.pem",
        "ssl_certfile": "cert.pem",
        "root_path": "/vision",
        "backlog": 4096,
        "forwarded_allow_ips": "10.0.0.0/8",
        "date_header": False,
        "headers": [("X-Site", "north")],
    }


def test_a_variable_is_used_without_an_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UVICORN_ROOT_PATH", "/vision")
    assert parse(["--backlog", "9"]) == {"root_path": "/vision", "backlog": 9}
    assert parse(["--root-path", "/"]) == {"root_path": "/"}
    monkeypatch.setenv("UVICORN_WORKERS", "4")
    with pytest.raises(
        WrongOption, match="--workers is not supported: the service runs in one process"
    ):
        parse([])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--host ::1", "--host is not supported: give --host before the --"),
        ("--log-level debug", "--log-level is not supported: give --log-level before the --"),
        ("--timeout-graceful-shutdown 3", "give --grace-seconds before the --"),
        ("--timeout-keep-alive 3", "give --keep-alive-seconds before the --"),
        ("--limit-concurrency 3", "give --max-connections before the --"),
        ("--reload-dir .", "--reload-dir is not supported"),
        ("--http h11", "only HTTP/1.1 is supported"),
        ("--ws websockets", "only HTTP/1.1 is supported"),
        ("--header Name", "'Name' is not a header such as Name:Value"),
        ("--backlog", "uvicorn: Option '--backlog' requires an argument"),
        ("more", "uvicorn: Got unexpected extra argument"),
    ],
)
def test_an_invalid_or_unsupported_option_is_an_error(arguments: str, sentence: str) -> None:
    with pytest.raises(WrongOption) as caught:
        parse(arguments.split())
    assert sentence in str(caught.value)
    assert caught.value.exit_status == 2


def test_help_is_uvicorns(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    assert stop.value.code == 0
    assert "--ssl-keyfile" in capsys.readouterr().out


def test_every_option_of_uvicorn_is_passed_on_or_unsupported() -> None:
    """A new option of uvicorn's comes here first, to be decided on."""
    named = {option.name for option in uvicorn.main.params} - {None, "app", "version"}
    passed = set()
    for option in uvicorn.main.params:
        if option.name in named:
            value = [] if getattr(option, "is_flag", False) else ["1"]
            try:
                passed |= parse([option.opts[0], *value]).keys()
            except WrongOption as error:
                passed -= {str(error)}
    assert passed == {
        *("uds", "fd", "loop", "proxy_headers", "server_header", "date_header", "root_path"),
        *("forwarded_allow_ips", "backlog", "limit_max_requests", "limit_max_requests_jitter"),
        *("ssl_keyfile", "ssl_certfile", "ssl_keyfile_password", "ssl_version", "ssl_cert_reqs"),
        *("ssl_ca_certs", "ssl_ciphers", "reset_contextvars"),
    }
