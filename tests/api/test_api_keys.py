"""API keys: their file, look-up, reload and rate limits."""

import logging
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_auth import sha256, table

from service.__main__ import main
from service.api.auth import api_keys
from service.api.auth.api_keys import ApiKey, Keyring
from service.errors import KeysError
from service.serving.rate_limits import Left, Limit, Quota, Quotas

WEB, BATCH = "key of web", "key of batch"
LIMITS = (Limit(20, "second"), Limit(100_000, "day"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with two keys."""
    path = tmp_path / "keys.toml"
    path.write_text(table("web", WEB, "20/second", "100000/day") + table("batch", BATCH), "utf-8")
    return path


# Files and settings.


def test_a_file_and_a_setting_have_names_digests_and_limits(file: Path) -> None:
    web, batch = api_keys.digest(WEB.encode()), api_keys.digest(BATCH.encode())
    assert api_keys.read(file) == (ApiKey("web", web, LIMITS), ApiKey("batch", batch))
    text = f"web:{sha256(WEB)},batch:{sha256(BATCH).upper()}"
    assert api_keys.parse(text) == (ApiKey("web", web), ApiKey("batch", batch))


DIGEST = sha256(WEB)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("# nothing\n", "{} has no key in it"),
        ("[web\n", "{} is not TOML: .*at line 1, column 5.*"),
        ("\xff", "{} is not TOML: .*"),
        ("[web]\n[web]\n", "{} is not TOML: .*at line 2.*"),
        ("\n\n[web]\n", "{}: line 3: web.sha256: Field required"),
        (f'[a]\nsha256="{DIGEST}"\n["web"]\nsha256 = "sesame"\n', "{}: line 3: web.sha256: .*"),
        (f'[a]\nsha256="{DIGEST}"\nsesame="b"\n[b]', "{}: line 1: a.sesame: Extra inputs .*"),
        ('web = "sesame"\n', "{}: line 1: web: Input should be .*"),
        (f'web.sha256 = "{DIGEST}"\nweb.limits = ["1/week"]', "{}: line 1: web.limits.0: .*"),
        (f'[web-1]\nsha256 = "{DIGEST}"\n[web]\n', "{}: line 3: web.sha256: Field required"),
        ('["a b"]\n', r"{}: line 1: a b.\[key\]: .*"),
        ('"w\\u0065b" = 1\n', "{}: line 1: web: .*"),
        (table("web", WEB, "0/day"), "{}: line 1: web.limits.0: .*"),
        (table("a", WEB) + table("b", WEB), "{}: a and b are the same key"),
        (table("a", WEB, "1/day", "2/day"), "{}: a has two limits for the same window"),
    ],
)
def test_an_invalid_file_is_refused_with_its_line(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(KeysError) as refused:
        api_keys.read(path)
    assert re.fullmatch(sentence.format(re.escape(str(path))), str(refused.value))


def test_a_missing_file_is_an_error() -> None:
    with pytest.raises(KeysError, match=r"^cannot read the keys nowhere: No such file"):
        api_keys.read(Path("nowhere"))


def test_a_name_is_given_once_in_all(file: Path) -> None:
    with pytest.raises(KeysError, match="two keys named web"):
        Keyring(file, f"web:{sha256('other')}", print)
    with pytest.raises(KeysError, match="two keys named a"):
        api_keys.parse(f"a:{sha256(WEB)},a:{sha256(BATCH)}")


def test_a_key_in_the_place_of_its_digest_is_not_repeated(tmp_path: Path) -> None:
    path, key = tmp_path / "keys.toml", api_keys.new()
    for wrong in (f'[web]\nsha256 = "{key}"', f'web = "{key}"', f"[web]\nsha256 = {key}"):
        path.write_text(wrong, "utf-8")
        with pytest.raises(KeysError) as refused:
            api_keys.read(path)
        assert key not in str(refused.value)


# New keys and look-up.


def test_a_new_key_has_256_random_bits() -> None:
    made = {api_keys.new() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"gnet_[A-Za-z0-9_-]{43}", key) for key in made)


def names(ring: Keyring) -> list[str | None]:
    entries = (ring.find(key.encode()) for key in (WEB, BATCH))
    return [entry.name if entry else None for entry in entries]


def test_a_key_is_found_by_all_of_it(file: Path) -> None:
    ring = Keyring(file, f"more:{sha256('more')}", lambda _: None)
    assert names(ring) == ["web", "batch"]
    assert ring.find(b"more") is not None
    for other in ("", WEB[:-1], f"{WEB} ", WEB.upper(), sha256(WEB)):
        assert ring.find(other.encode()) is None


def test_the_command_makes_entries_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "new", "web", "--limits", "20/second,100000/day"]) == 0
    key, entry = capsys.readouterr()
    assert main(["keys", "new", "batch"]) == 0
    file = tmp_path / "keys.toml"
    file.write_text(entry + capsys.readouterr().err, "utf-8")
    web, batch = api_keys.read(file)
    digest = api_keys.digest(key.strip().encode())
    assert (web.name, web.digest, web.limits) == ("web", digest, LIMITS)
    assert (batch.name, batch.limits) == ("batch", ())
    assert key.strip() not in file.read_text("utf-8")

    assert main(["keys", "check", str(file)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"web\s.*20/second, 100000/day", shown)
    assert re.search(r"batch\s", shown)


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["new", "a b"], 2, "'a b' is not of letters, digits, _ and -"),
        (["new", "a", "--limits", "1/second,2/week"], 2, "'2/week' is not like 20/second or"),
        (["check", "nowhere"], 1, "googlenet-service: cannot read the keys nowhere: No such file"),
    ],
)
def test_invalid_arguments_are_an_error(
    arguments: list[str], status: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        ended = main(["keys", *arguments])
    except SystemExit as stop:
        ended = int(stop.code or 0)
    assert ended == status
    assert sentence in capsys.readouterr().err


# Reloading.


def replace(file: Path, text: str) -> None:
    """Put another file in its place, as a careful writer does."""
    other = file.with_suffix(".new")
    other.write_text(text, "utf-8")
    other.replace(file)


def rewrite(file: Path, text: str) -> None:
    file.write_text(text, "utf-8")


@pytest.mark.parametrize("write", [replace, rewrite])
def test_a_changed_file_is_reloaded_within_a_second(
    write: Callable[[Path, str], None], file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reported: list[list[str]] = []
    ring = Keyring(file, None, lambda names: reported.append([*names]))
    ring.refresh(100.0)
    write(file, table("batch", BATCH) + table("new", "a third"))
    ring.refresh(100.9)
    assert names(ring) == ["web", "batch"]
    with caplog.at_level(logging.INFO):
        ring.refresh(101.0)
        ring.refresh(102.0)
    assert names(ring) == [None, "batch"]
    assert reported == [["web", "batch"], ["batch", "new"]]
    assert caplog.messages == ["reloaded 2 API keys"]


def test_a_secret_of_kubernetes_is_reloaded(tmp_path: Path) -> None:
    """The file is a link to one below `..data`, a link that is swapped for one to new files."""
    for version, key in (("1", WEB), ("2", BATCH)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys.toml").write_text(table("a", key), "utf-8")
        os.utime(tmp_path / version / "keys.toml", (0, 0))
    (tmp_path / "..data").symlink_to("1")
    file = tmp_path / "keys.toml"
    file.symlink_to("..data/keys.toml")
    ring = Keyring(file, None, lambda _: None)
    assert names(ring) == ["a", None]
    (tmp_path / "..tmp").symlink_to("2")
    (tmp_path / "..tmp").replace(tmp_path / "..data")
    ring.refresh(1.0)
    assert names(ring) == [None, "a"]


def test_a_broken_or_missing_file_keeps_the_keys_and_is_logged_once(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ring = Keyring(file, None, lambda _: None)
    caplog.set_level(logging.INFO)
    text = file.read_text("utf-8")
    for started, content in ((10, "[web"), (20, "[web"), (30, None), (40, text)):
        if content is None:
            file.unlink()
        else:
            replace(file, content)
        for now in (started, started + 1, started + 2):
            ring.refresh(now)
            assert names(ring) == ["web", "batch"]
    *errors, last = caplog.records
    assert (last.levelno, last.message) == (20, "reloaded 2 API keys")
    assert [error.levelno for error in errors] == [logging.ERROR] * 3
    starts = [*[f"{file} is not TOML: "] * 2, f"cannot read the keys {file}: "]
    for error, start in zip(errors, starts, strict=True):
        assert error.message.startswith(start)
        assert error.message.endswith("; keeping the previous keys")
        assert error.exc_info is None


def test_a_kept_key_keeps_its_quota(file: Path) -> None:
    file.write_text(table("web", WEB, "2/day") + table("batch", BATCH, "2/day"), "utf-8")
    ring, quotas = Keyring(file, None, lambda _: None), Quotas()

    def is_refused(key: str, now: float) -> bool:
        api_key = ring.find(key.encode())
        assert api_key is not None
        return quotas.take(api_key.name, api_key.limits, now).wait > 0

    assert [is_refused(key, 0.0) for key in (WEB, BATCH)] == [False, False]
    replace(file, table("web", "rotated", "2/day") + table("batch", BATCH, "3/day"))
    ring.refresh(1.0)
    assert [is_refused("rotated", now) for now in (2.0, 3.0)] == [False, True]
    assert [is_refused(BATCH, 2.0) for _ in range(4)] == [False, False, False, True]


# Limits.


def test_a_window_begins_with_its_first_request_and_ends_for_all_of_them() -> None:
    quota = Quota([Limit(2, "second")])
    assert [quota.take(now) for now in (5.0, 5.5)] == [0, 0]
    assert quota.take(5.75) == 0.25
    assert quota.left(5.75) == [Left(Limit(2, "second"), 0, 0.25)]
    assert quota.take(6.0) == 0
    assert quota.left(6.0) == [Left(Limit(2, "second"), 1, 1.0)]


def test_a_refusal_counts_in_no_window() -> None:
    quota = Quota([Limit(1, "second"), Limit(3, "minute")])
    assert [quota.take(now) for now in (0.0, 0.5, 0.5, 1.0, 2.0)] == [0, 0.5, 0.5, 0, 0]
    assert quota.take(3.0) == 57.0
    assert [left.requests for left in quota.left(3.0)] == [1, 0]


def test_a_key_without_limits_is_never_refused() -> None:
    quota = Quota([])
    assert [quota.take(0.0) for _ in range(1000)] == [0.0] * 1000
    assert quota.left(0.0) == []


@given(
    limits=st.lists(
        st.builds(Limit, st.integers(1, 4), st.sampled_from(["second", "minute", "hour", "day"])),
        min_size=1, max_size=3, unique_by=lambda limit: limit.window,
    ),
    pauses=st.lists(st.floats(0, 4000), max_size=30),
    start=st.floats(0, 1e9),
)  # fmt: skip
def test_a_key_is_admitted_after_its_wait_and_never_over_its_limit(
    limits: list[Limit], pauses: list[float], start: float
) -> None:
    quota, now, admitted = Quota(limits), start, [-math.inf]
    for pause in pauses:
        now += pause
        if wait := quota.take(now):
            assert quota.take(now + wait / 2) > 0  # and it need not have waited less
            now = math.nextafter(now + wait, math.inf)  # a float's width later
            assert quota.take(now) == 0
        admitted.append(now)
        for left in quota.left(now):
            assert 0 <= left.requests < left.limit.requests
            assert 0 < left.seconds <= left.limit.seconds
    for limit in limits:  # a window and the next one may meet: twice the limit, never more
        for first in admitted:
            within = [at for at in admitted if first <= at < first + limit.seconds]
            assert len(within) <= 2 * limit.requests
