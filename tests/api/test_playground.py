"""The playground at /: its files, and its behaviour in a browser."""

import base64
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from dataclasses import replace as changed
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import ROOT, Served, fake_backend, missing, website
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from starlette.testclient import TestClient
from test_auth import KEY, OTHER, digests
from test_classify import Gate, encoded, plain, service
from test_connections import hosting
from test_label_sets import SETS, UNSURE
from test_metrics import counts

from service.api.routes import page
from service.settings import Settings

FILES = sorted((ROOT / "service/api/static/playground").iterdir())
PATIENCE = 20_000  # ms, for what happens at once


# What is sent.


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """A ready service on a fake model that asks for a key."""
    guarded = Settings(model="fake", api_key_hashes=digests(web=KEY))
    with service(lambda *_: fake_backend(), guarded, root_path="/vision") as client:
        yield client


def test_every_file_has_its_content_type_and_needs_no_key(client: TestClient) -> None:
    kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
    assert len(page.PATHS) == len(FILES)
    for file in FILES:
        path = "/" if file.name == "index.html" else f"/{file.name}"
        answer = client.get(path)
        assert answer.content == file.read_bytes()
        assert answer.headers["content-type"] == f"{kinds[file.suffix]}; charset=utf-8"
        head = client.head(path)
        assert (head.status_code, head.headers["etag"]) == (200, answer.headers["etag"])


def test_a_cached_file_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/page.js")
    assert first.headers["cache-control"] == "no-cache"
    tag = first.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        again = client.get("/page.js", headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
    for unknown in ('"other"', tag.strip('"'), client.get("/page.css").headers["etag"]):
        assert client.get("/page.js", headers={"If-None-Match": unknown}).status_code == 200


def test_the_page_may_load_itself_and_nothing_else(client: TestClient) -> None:
    policy = client.get("/").headers["content-security-policy"]
    rules = {words[0]: words[1:] for words in map(str.split, policy.split(";"))}
    assert rules["default-src"] == rules["base-uri"] == rules["frame-ancestors"] == ["'none'"]
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == ["'self'"]
    assert rules["img-src"] == ["'self'", "blob:", "data:"]
    assert client.get("/docs").headers["content-security-policy"] != policy


def test_the_page_is_counted_by_its_routes_and_is_no_part_of_the_api(client: TestClient) -> None:
    assert not page.PATHS & client.get("/openapi.json").json()["paths"].keys()
    before = counts(client, "googlenet_requests_total").get(("200", "GET", "interactive", "/"), 0)
    client.get("/")
    assert (
        counts(client, "googlenet_requests_total")["200", "GET", "interactive", "/"] == before + 1
    )


# What is seen.


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser with a camera, for which insecure.test is this machine, without TLS."""
    program = shutil.which("chromium")
    if not program:
        missing("chromium")
    flags = [
        "--use-fake-device-for-media-stream",
        "--host-resolver-rules=MAP insecure.test 127.0.0.1",
    ]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=flags)
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page that is open, and how many requests it made."""

    page: Page
    requested: list[str] = field(default_factory=list)

    def __call__(self, selector: str) -> Locator:
        """Find what is on the page."""
        return self.page.locator(selector)

    @property
    def cards(self) -> Locator:
        """All answers, the newest first."""
        return self("#cards > li")

    @property
    def command(self) -> str:
        """The first card's, unfolded or not."""
        return self("code").first.text_content() or ""

    def pick(self, *files: Path | tuple[str, bytes]) -> None:
        """Choose images as the browser's own dialog does."""
        some = [
            file
            if isinstance(file, Path)
            else {"name": file[0], "mimeType": "application/octet-stream", "buffer": file[1]}
            for file in files
        ]
        self.page.set_input_files("#files", some)  # type: ignore[arg-type]  # its union is of lists

    def answered(self, *labels: str) -> None:
        """Check the first labels of all cards, or what is said instead."""
        expect(self("#cards [aria-busy=true]")).to_have_count(0)
        said = self(
            "[data-state=answered] .labels li:first-child .name, [data-state=refused] .state"
        )
        expect(said).to_have_text(labels)


Open = Callable[..., Visit]


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Open]:
    """Opens the page of a service; afterwards nothing may have gone wrong in it."""
    visits: list[tuple[str, Visit]] = []
    wrong: list[str] = []

    def complain(text: str) -> None:
        # Browsers log every refusal, too, whatever a page makes of it.
        if not re.match(r"Failed to load resource: (the server responded|net::ERR_INTERNET)", text):
            wrong.append(text)

    def open_page(port: int, path: str = "/", host: str = "127.0.0.1", **options: Any) -> Visit:
        context = chromium.new_context(**options)
        context.set_default_timeout(PATIENCE)
        ours = Visit(context.new_page())
        ours.page.on("console", lambda said: complain(said.text))
        ours.page.on("pageerror", lambda error: complain(str(error)))
        ours.page.on("request", lambda request: ours.requested.append(request.url))
        # Told of from the first on, or one that comes soon would be the browser's own.
        ours.page.on("filechooser", lambda _: None)
        visits.append((origin := f"http://{host}:{port}/", ours))
        ours.page.goto(origin.removesuffix("/") + path)
        return ours

    expect.set_options(timeout=PATIENCE)
    yield open_page
    for origin, ours in visits:
        ours.page.context.close()
        others = [url for url in ours.requested if not url.startswith((origin, "blob:", "data:"))]
        assert others == []
    assert wrong == []


@pytest.fixture(scope="module")
def gate() -> Gate:
    """The executor of the fake service."""
    return Gate()


@pytest.fixture(scope="module")
def port(gate: Gate) -> Iterator[int]:
    """The port of a service on a fake model, which has something to be known of it."""
    backend = fake_backend(gate)
    (member,) = backend.ensemble.members
    members = (changed(member, notice="It knows <b>three</b> colours."),)
    backend.ensemble = changed(backend.ensemble, members=members)
    with hosting(backend, max_inflight_body_bytes=40_000) as ours:
        yield ours.port


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
RED, BLUE = ("red.png", plain("red")), ("blue.png", plain("blue"))


def noise(name: str) -> tuple[str, bytes]:
    """Make an image of 12 kB, of which only one has room in the service at a time."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    return name, encoded(Image.fromarray(pixels))


def test_an_image_has_five_bars_of_labels_and_the_time_of_each_stage(
    visit: Open, served: Served, shared: Path
) -> None:
    ours = visit(served.port)
    expect(ours("#served")).to_have_text("bvlc_googlenet knows 1,000 labels, on cpu in float32.")
    ours.pick(shared / "photos/flickr/beagle.jpg")
    ours.answered("beagle")
    assert 0.5 < percents(ours.cards)[0] <= 1
    assert sorted(percents(ours.cards), reverse=True) == percents(ours.cards)
    widths = [box(bar)["width"] for bar in ours(".bar").all()]
    assert len(widths) == 5
    filled = ours.page.evaluate(
        """[...document.querySelectorAll(".bar")].map(
            (bar) => parseFloat(getComputedStyle(bar, "::before").width)
        )"""
    )
    shares = [part / whole for part, whole in zip(filled, widths, strict=True)]
    assert shares == pytest.approx(percents(ours.cards), abs=0.02)
    expect(ours(".time summary")).to_have_text(re.compile(r"Time: \d+\sms"))
    ours(".time summary").click()
    assert re.fullmatch(
        r"decode [\d.]+ ms queue [\d.]+ ms inference \d+ ms, in a batch of \d+ rows?",
        " ".join(ours(".legend").inner_text().split()),
    )
    assert ours(".stages span").count() == 3
    expect(ours("#log")).to_contain_text("beagle.jpg: beagle, ")
    expect(ours("#cards img")).to_have_js_property("complete", value=True)
    assert ours.page.evaluate("document.querySelector('#cards img').naturalWidth > 0")


def percents(card: Locator) -> list[float]:
    return [float(text.strip("<>% ")) / 100 for text in card.locator(".share").all_inner_texts()]


def box(part: Locator) -> dict[str, float]:
    found = part.bounding_box()
    assert found is not None
    return {**found}


def test_each_of_several_images_has_labels_or_its_error(
    visit: Open, served: Served, shared: Path, beagle: bytes, tmp_path: Path
) -> None:
    ours = visit(served.port)
    photos = shared / "photos/flickr"
    (cut := tmp_path / "cut.jpg").write_bytes(beagle[:9999])
    ours.pick(photos / "koala.jpg")
    ours.answered("koala")
    ours.pick(photos / "beagle.jpg", cut)
    ours.answered("beagle", "The JPEG image is broken or cut short; send it whole.", "koala")
    expect(ours("h3")).to_have_text(["beagle.jpg", "cut.jpg", "koala.jpg"])
    expect(ours.cards.nth(1).locator(".again")).to_be_hidden()  # it would be as broken then


def test_other_views_are_for_the_next_image_and_again_for_the_last(visit: Open, port: int) -> None:
    ours = visit(port)
    expect(ours("#views label")).to_have_text(
        ["single", "ten", "paper", "dense", "adaptive", "adaptive:paper", "auto"]
    )
    expect(ours.page.get_by_label("adaptive", exact=True)).to_be_checked()
    ours.pick(RED)
    ours.answered("red")
    expect(ours(".state")).to_have_text("fake0, one view")  # which is sure
    expect(ours(".again")).to_be_hidden()
    ours.page.get_by_label("ten").check()
    expect(ours("#views-hint")).to_have_text(re.compile("Four corners and the centre"))
    expect(ours(".state")).to_have_text("fake0, one view")
    ours(".again").click()
    expect(ours(".state")).to_have_text("fake0, 10 views (ten)")
    expect(ours(".again")).to_be_hidden()
    expect(ours("code")).to_contain_text("views=ten")
    assert sum("/classify?" in url for url in ours.requested) == 2


def test_a_model_can_be_chosen(visit: Open) -> None:
    with hosting(additional_models="other") as hosted:
        ours = visit(hosted.port)
        expect(ours("#model option")).to_have_text(["fake", "other"])
        ours.page.get_by_label("Model").select_option("other")
        ours.pick(RED)
        ours.answered("red")
        expect(ours("code")).to_contain_text("model=other")
        assert [url for url in ours.requested if "/classify?" in url and "model=other" in url]


def test_a_link_has_the_settings_and_a_calibrated_model_its_label_sets(visit: Open) -> None:
    backend = fake_backend()
    (member,) = backend.ensemble.members
    members = (changed(member, label_sets=SETS),)
    backend.ensemble = changed(backend.ensemble, members=members)
    with hosting(backend) as hosted:
        ours = visit(hosted.port)
        expect(ours("#coverage-choice")).to_be_hidden()  # `adaptive` is not calibrated
        ours.page.get_by_label("single").check()
        ours("#coverage").select_option("0.9")
        link = ours("#settings-link").get_attribute("href")
        assert link == "#views=single&coverage=0.9"
        ours = visit(hosted.port, path=f"/{link}")
        ours.pick(("orange.png", UNSURE))
        ours.answered("red")
        expect(ours(".set")).to_have_text("With 90\u00a0% coverage: red or green.")
        for coverage, sentence in ("0.95", "too many labels to tell, 3."), ("", ""):
            ours("#coverage").select_option(coverage)
            again = ours(".again")
            expect(again).to_have_text(f"Again with single, {'a' if coverage else 'no'} set")
            again.click()
            expect(again).to_be_hidden()
            expect(ours(".set")).to_have_text(re.compile(re.escape(sentence) + "$"))
        ours.page.evaluate("location.hash = '#views=ten&coverage=7&model=none'")
        expect(ours.page.get_by_label("ten")).to_be_checked()
        expect(ours("#coverage")).to_have_value("")


def test_the_images_of_a_visit_lead_to_their_cards_of_one_height(visit: Open, port: int) -> None:
    ours = visit(port, viewport={"width": 1280, "height": 500})
    ours.pick(RED)
    ours.answered("red")
    expect(ours("#history")).to_be_hidden()
    ours.pick(BLUE, ("broken.png", b"broken"), ("wide.png", plain("red")))
    ours.answered("blue", "Not a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF image.", "red", "red")
    articles = ours("article").all()[:3]  # of one row
    assert len({box(article)["height"] for article in articles}) == 1
    ours.page.get_by_role("button", name="red.png").click()
    expect(ours.cards.last).to_be_focused()
    expect(ours.cards.last).to_be_in_viewport()
    ours("#clear").click()
    expect(ours("#history li")).to_have_count(0)


def test_a_model_that_does_not_explain_has_no_heat_map(visit: Open, port: int) -> None:
    ours = visit(port)
    ours.pick(RED)
    ours.answered("red")
    expect(ours(".heat")).to_be_hidden()


def transfer(kind: str, files: Sequence[tuple[str, bytes]]) -> tuple[str, list[Any]]:
    """Give the script, and its argument, of files that are dropped or pasted."""
    script = """([kind, files]) => {
        const data = new DataTransfer();
        for (const [name, bytes] of files) {
            data.items.add(new File([Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0))], name));
        }
        const how = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
        const event = kind === "paste" ? new ClipboardEvent(kind, how) : new DragEvent(kind, how);
        return document.querySelector("h1").dispatchEvent(event);
    }"""
    return script, [kind, [(name, base64.b64encode(data).decode()) for name, data in files]]


def test_images_are_dropped_anywhere(visit: Open, port: int) -> None:
    ours = visit(port)
    marked = re.compile("over")
    # A browser opens a dropped file that no handler takes.
    assert ours.page.evaluate(*transfer("dragover", [])) is False
    expect(ours("#drop")).to_have_class(marked)
    assert ours.page.evaluate(*transfer("dragleave", [])) is True
    expect(ours("#drop")).not_to_have_class(marked)
    ours.page.evaluate(*transfer("dragover", []))
    assert ours.page.evaluate(*transfer("drop", [RED, BLUE])) is False
    ours.answered("red", "blue")
    expect(ours("#drop")).not_to_have_class(marked)
    expect(ours("#message")).to_be_hidden()
    ours.page.evaluate(*transfer("drop", []))
    expect(ours("#message")).to_have_text("That was no file. Save the image first, then drop it.")


def test_images_are_pasted_and_text_is_left_to_the_browser(visit: Open, port: int) -> None:
    ours = visit(port)
    assert ours.page.evaluate(*transfer("paste", [BLUE])) is False
    ours.answered("blue")
    assert ours.page.evaluate(*transfer("paste", [])) is True
    expect(ours.cards).to_have_count(1)


def test_the_camera_takes_a_photo(visit: Open, port: int) -> None:
    ours = visit(port, permissions=["camera"])
    ours("#use-camera").click()
    expect(ours("video")).to_have_js_property("readyState", 4)
    ours("#shoot").click()
    expect(ours("#camera")).to_be_hidden()
    expect(ours("h3")).to_have_text("camera.jpg")
    expect(ours(".labels li")).to_have_count(3)  # the fake model has no more
    expect(ours("video")).to_have_js_property("srcObject", None)
    ours("#use-camera").click()
    expect(ours("#camera")).to_be_visible()  # or nothing is there to close
    ours.page.keyboard.press("Escape")
    expect(ours("#camera")).to_be_hidden()
    expect(ours.cards).to_have_count(1)


ASKING = """
    const media = navigator.mediaDevices, ask = media.getUserMedia.bind(media);
    const allowed = new Promise((allow) => { window.allow = allow; });
    const streams = window.streams = [];
    media.getUserMedia = async (wanted) => {
        const stream = await ask(wanted);
        streams.push(stream);
        await allowed;
        return stream;
    };
"""


def test_a_camera_that_is_requested_twice_is_opened_once(visit: Open, port: int) -> None:
    ours = visit(port, permissions=["camera"])
    ours.page.add_init_script(ASKING)
    ours.page.reload()
    ours("#use-camera").click()
    ours("#use-camera").click()
    ours.page.evaluate("allow()")
    expect(ours("video")).to_have_js_property("readyState", 4)
    ours("#close-camera").click()
    expect(ours("#camera")).to_be_hidden()
    expect(ours("video")).to_have_js_property("srcObject", None)  # a dialog tells a little later
    tracks = "streams.flatMap((stream) => stream.getTracks()).map((track) => track.readyState)"
    assert ours.page.evaluate(tracks) == ["ended"]
    ours("#use-camera").click()
    expect(ours("#camera")).to_be_visible()


def test_no_photo_is_taken_before_the_camera_has_an_image(visit: Open, port: int) -> None:
    ours = visit(port, permissions=["camera"])
    ours.page.add_init_script(
        "navigator.mediaDevices.getUserMedia = async () => new MediaStream();"
    )
    ours.page.reload()
    ours("#use-camera").click()
    ours("#shoot").click()
    expect(ours("#camera")).to_be_visible()
    expect(ours.cards).to_have_count(0)


def test_a_forbidden_camera_shows_an_error(visit: Open, port: int) -> None:
    ours = visit(port, permissions=[])
    ours("#use-camera").click()
    expect(ours("#message")).to_have_text("The browser does not allow the camera.")


def test_without_tls_a_phones_own_camera_and_the_keyboards_copy_are_offered(
    visit: Open, port: int
) -> None:
    ours = visit(port, host="insecure.test")
    with ours.page.expect_file_chooser() as chooser:
        ours("#use-camera").click()
    assert chooser.value.element.get_attribute("capture") == "environment"
    chooser.value.set_files([{"name": "me.png", "mimeType": "image/png", "buffer": RED[1]}])
    ours.answered("red")
    ours(".command summary").click()
    ours(".copy").click()
    expect(ours(".copy")).to_have_text("Selected: press Ctrl+C")
    assert ours.page.evaluate("String(getSelection())") == ours.command


def run(command: str, folder: Path, **environment: str) -> dict[str, Any]:
    """Run the curl that the page shows, where the image is."""
    if not shutil.which("curl"):
        missing("curl")
    done = subprocess.run(  # noqa: S602 - our own page's
        command.replace("curl", "curl --silent --show-error --fail", 1),
        shell=True, cwd=folder, capture_output=True, check=False, timeout=60,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = httpx2.Response(200, content=done.stdout).json()
    return answer


def test_the_curl_that_is_shown_does_the_same_whatever_the_images_name(
    visit: Open, port: int, tmp_path: Path
) -> None:
    ours = visit(port, permissions=["clipboard-read", "clipboard-write"])
    for name in ("red.png", """it's "red", isn't; it & \\$HOME.png"""):
        (tmp_path / name).write_bytes(RED[1])
        ours.pick(tmp_path / name)
        expect(ours.cards.first.locator("h3")).to_have_text(name)
        expect(ours.cards.first.locator(".labels")).to_be_visible()
        ours(".command summary").first.click()
        ours(".copy").first.click()
        expect(ours(".copy").first).to_have_text("Copied")
        copied = ours.page.evaluate("navigator.clipboard.readText()")
        assert copied == ours.command
        answer = run(copied, tmp_path)
        assert (answer["views"], answer["predictions"][0]["label"]) == ("adaptive", "red")


def test_images_that_a_browser_cannot_show_are_classified_too(visit: Open, port: int) -> None:
    ours = visit(port)
    ours.pick(("red.tiff", encoded(Image.new("RGB", (8, 8), "red"), "TIFF")), ("a.heic", HEIC))
    ours.answered("red", "This is HEIC, the format of an iPhone's photos; export it as JPEG.")
    expect(ours(".no-preview >> visible=true")).to_have_count(2)


def test_file_names_and_notices_are_shown_as_text(visit: Open, port: int) -> None:
    name = "<img src=x onerror=alert(1)>.png"
    ours = visit(port)
    expect(ours("#notice")).to_have_text("It knows <b>three</b> colours.")
    ours.pick((name, RED[1]))
    ours.answered("red")
    expect(ours("h3")).to_have_text(name)


# What is bounded.


def test_four_images_are_sent_at_once(visit: Open, gate: Gate) -> None:
    with hosting(fake_backend(gate)) as hosted:
        ours = visit(hosted.port)
        with gate.shut():
            ours.pick(*[RED, BLUE] * 3)
            expect(ours("[data-state=asking]")).to_have_count(4)
            expect(ours("[data-state=waiting]")).to_have_count(2)
            expect(ours("[data-state=waiting] .state").first).to_have_text("Waits for its turn…")
            hosted.until(lambda told: told["googlenet_requests_in_flight"] == 5)  # and the scrape
            ours("#clear").click()  # who is not wanted any more does not wait, either
            hosted.until(lambda told: told["googlenet_requests_in_flight"] == 1)
            expect(ours.cards).to_have_count(0)
            ours.pick(*[RED, BLUE] * 3)
            expect(ours("[data-state=asking]")).to_have_count(4)
        ours.answered(*["red", "blue"] * 3)


COUNTING = """
    const shown = window.shown = new Set();
    const [create, revoke] = [URL.createObjectURL, URL.revokeObjectURL];
    URL.createObjectURL = (blob) => { const url = create(blob); shown.add(url); return url; };
    URL.revokeObjectURL = (url) => { shown.delete(url); revoke(url); };
"""


def test_the_last_24_are_kept_and_no_image_of_another(visit: Open, port: int) -> None:
    ours = visit(port)
    ours.page.add_init_script(COUNTING)
    ours.page.reload()
    ours.page.get_by_label("single").check()
    ours.pick(*[RED] * 30)
    expect(ours("#message")).to_have_text("The first 24 of 30 images were taken.")
    ours.answered(*["red"] * 24)
    ours.pick(BLUE)
    ours.answered("blue", *["red"] * 23)
    assert ours.page.evaluate("shown.size") == 24
    ours("#clear").click()
    expect(ours("#results")).to_be_hidden()
    assert ours.page.evaluate("shown.size") == 0
    expect(ours("#choose")).to_be_focused()


# What goes wrong.


def test_a_refusal_shows_when_to_retry(visit: Open, port: int, gate: Gate) -> None:
    ours = visit(port)
    with gate.shut():
        ours.pick(noise("first.png"))
        assert gate.entered.wait(PATIENCE / 1000)
        ours.pick(noise("second.png"))
        second = ours.cards.first
        expect(second.locator(".state")).to_have_text(
            "Uploads in flight fill their 40000 bytes of memory. Come again in 1 s."
        )
        again = second.locator(".again")
        expect(again).to_have_text("Try again in 1 s")
        expect(again).to_have_attribute("aria-disabled", "true")
        again.dispatch_event("click")  # too early
        expect(again).to_have_text("Try again")
        expect(again).to_have_attribute("aria-disabled", "false")
        assert sum("/classify" in url for url in ours.requested) == 2
    expect(ours.cards.nth(1).locator(".labels")).to_be_visible()
    again.focus()
    ours.page.keyboard.press("Enter")
    expect(second.locator(".labels")).to_be_visible()
    expect(second).to_be_focused()


def test_a_missing_response_shows_an_error_and_can_be_retried(visit: Open, port: int) -> None:
    ours = visit(port)
    expect(ours("#options")).to_be_visible()
    ours.page.context.set_offline(True)
    ours.pick(RED)
    nothing = "There was no answer: the service cannot be reached, or the file not read."
    ours.answered(nothing)
    ours.page.context.set_offline(False)
    ours(".again").click()
    ours.answered("red")


def test_a_response_of_a_proxy_shows_an_error(visit: Open, port: int) -> None:
    ours = visit(port)
    ours.page.route("**/classify?*", lambda route: route.fulfill(status=502, body="<h1>Oh</h1>"))
    ours.pick(RED)
    ours.answered("The answer was 502 Bad Gateway.")
    ours.page.unroute_all()
    ours.page.route("**/classify?*", lambda route: route.fulfill(body="<h1>Sign in</h1>"))
    ours(".again").click()
    ours.answered("There was no answer: the service cannot be reached, or the file not read.")


def test_a_service_that_is_not_ready_yet_is_waited_for(visit: Open, port: int) -> None:
    ours = visit(port)
    expect(ours("#options")).to_be_visible()
    loading = {"detail": "the model is being loaded", "retry_after_ms": 300}
    answers = iter([loading, loading])

    def refuse(route: Any) -> None:
        if problem := next(answers, None):
            route.fulfill(status=503, json=problem)
        else:
            route.continue_()

    ours.page.route("**/models", refuse)
    ours.page.reload()
    expect(ours("#served")).to_have_text("The model is being loaded.")
    expect(ours("#options")).to_be_hidden()
    expect(ours("#served")).to_have_text("fake knows 3 labels, on cpu in float32.")


def test_an_api_key_is_requested_where_the_service_needs_a_key(visit: Open, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(RED[1])
    with hosting(api_key_hashes=digests(web=KEY)) as hosted:
        ours = visit(hosted.port)
        field = ours.page.get_by_label("API key")
        expect(field).to_be_focused()
        ours.pick(RED)
        ours.answered("Send your API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`.")
        field.fill(OTHER)
        field.press("Enter")
        expect(ours("#key-hint")).to_have_text("The service does not know this key.")
        field.fill(KEY)
        field.press("Enter")
        ours.answered("red")  # without being asked again
        expect(ours("#key")).to_be_hidden()
        expect(ours("#options")).to_be_visible()
        command = ours.command
        assert KEY not in ours.page.content()
        assert run(command, tmp_path, KEY=KEY)["predictions"][0]["label"] == "red"
        assert ours.page.evaluate("[sessionStorage.length, localStorage.length]") == [1, 0]
        assert ours.page.context.cookies() == []
        ours.page.reload()
        expect(ours("#options")).to_be_visible()
        expect(visit(hosted.port)("#key")).to_be_visible()  # another tab knows nothing of it


# Who uses it, and where.


def test_a_keyboard_is_enough(visit: Open, port: int) -> None:
    ours = visit(port)
    expect(ours("#options")).to_be_visible()

    def tab() -> str:
        ours.page.keyboard.press("Tab")
        seen = ours.page.evaluate(
            """() => {
                const at = document.activeElement;
                const ring = at.type === "radio" ? at.parentElement : at;
                return [at.id || at.value || at.className || at.localName,
                        getComputedStyle(ring).outlineStyle];
            }"""
        )
        assert seen[1] == "solid", seen  # where one is can be seen
        return str(seen[0])

    first = ["choose", "use-camera", "adaptive", "settings-link", "a"]
    assert [tab() for _ in first] == first
    for press in ("Enter", "Space"):
        ours("#choose").focus()
        with ours.page.expect_file_chooser() as chooser:
            ours.page.keyboard.press(press)
        assert chooser.value.is_multiple()
        image = {"name": "red.png", "mimeType": "image/png", "buffer": RED[1]}
        chooser.value.set_files([image] if press == "Space" else [])
    ours.answered("red")
    assert [tab(), tab()] == ["use-camera", "adaptive"]
    ours.page.keyboard.press("ArrowLeft")
    expect(ours.page.get_by_label("dense")).to_be_checked()
    rest = ["settings-link", "clear", "again", "summary", "summary"]
    assert [tab() for _ in rest] == rest
    ours.page.keyboard.press("Enter")
    assert tab() == "copy"


WIDER = """[document.documentElement, ...document.querySelectorAll("article, #drop, dialog[open]")]
    .filter((part) => part.scrollWidth > part.clientWidth).map((part) => part.outerHTML)"""


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1100, "dark")])
def test_the_page_is_accessible_and_fits_every_width(width: int, scheme: str, visit: Open) -> None:
    with hosting(api_key_hashes=digests(web=KEY)) as hosted:
        ours = visit(
            hosted.port,
            viewport={"width": width, "height": 740},
            color_scheme=scheme,
            permissions=["camera"],
            reduced_motion="reduce",
        )

        def check() -> None:
            found = Axe().run(ours.page)
            assert found.violations_count == 0, found.generate_report()
            assert ours.page.evaluate(WIDER) == []

        expect(ours("#key")).to_be_visible()
        check()
        ours.page.get_by_label("API key").fill(KEY)
        ours.page.keyboard.press("Enter")
        expect(ours("#options")).to_be_visible()
        ours.pick(RED, ("a" * 200 + ".png", b"broken"))
        expect(ours("#cards [aria-busy=true]")).to_have_count(0)
        for summary in ours("[data-state=answered] summary").all():
            summary.click()
        ours.page.get_by_label("single").check()
        check()
        ours("#use-camera").click()
        expect(ours("video")).to_have_js_property("readyState", 4)
        check()


def test_reduced_motion_is_respected(visit: Open, port: int, gate: Gate) -> None:
    for wanted in ("no-preference", "reduce"):
        ours = visit(port, reduced_motion=wanted)
        with gate.shut():
            ours.pick(RED)
            expect(ours("[data-state=asking]")).to_have_count(1)
            moving = ours.page.evaluate("document.getAnimations().length")
            assert bool(moving) is (wanted == "no-preference")


def test_without_javascript_the_page_says_that_it_needs_it(visit: Open, port: int) -> None:
    ours = visit(port, java_script_enabled=False)
    expect(ours("noscript p")).to_contain_text("This page needs JavaScript.")


@contextmanager
def proxy(port: int, below: str) -> Iterator[str]:
    """Give the address of a proxy that takes a path away."""

    def answer(asked: BaseHTTPRequestHandler) -> None:
        assert asked.path.startswith(below)
        length = int(asked.headers.get("content-length", 0))
        theirs = httpx2.request(
            asked.command,
            f"http://127.0.0.1:{port}{asked.path.removeprefix(below)}",
            headers={"Content-Type": asked.headers.get("content-type", "")},
            content=asked.rfile.read(length),
        )
        asked.send_response(theirs.status_code)
        for name in ("content-type", "content-security-policy", "server-timing"):
            if name in theirs.headers:
                asked.send_header(name, theirs.headers[name])
        asked.end_headers()
        asked.wfile.write(theirs.content)

    with website(answer) as base:
        yield base


def test_the_page_works_below_a_path_of_a_proxy(visit: Open, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(RED[1])
    with (
        hosting(root_path="/vision") as hosted,
        proxy(hosted.port, "/vision") as base,
    ):
        ours = visit(int(base.rpartition(":")[2]), path="/vision/")
        expect(ours("#options")).to_be_visible()
        ours.pick(RED)
        ours.answered("red")
        assert f"{base}/vision/classify?views=adaptive" in ours.command
        assert run(ours.command, tmp_path)["predictions"][0]["label"] == "red"


def test_a_heat_map_lies_over_the_image_while_it_is_wanted(
    visit: Open, served: Served, shared: Path
) -> None:
    ours = visit(served.port)
    expect(ours("#options")).to_be_visible()
    ours.pick(shared / "photos/flickr/beagle.jpg")
    ours.answered("beagle")
    expect(ours(".path >> visible=true")).to_have_text("dog > hunting dog > hound > beagle")
    heat, image = ours(".heat"), ours("#cards img")
    original = image.get_attribute("src") or ""
    with ours.page.expect_response("**/explain?*") as explained:
        heat.click()
    assert explained.value.headers["content-type"] == "image/png"
    expect(heat).to_have_attribute("aria-pressed", "true")
    expect(image).not_to_have_attribute("src", original)
    expect(image).to_have_js_property("complete", value=True)
    assert ours.page.evaluate("document.querySelector('#cards img').naturalWidth > 0")
    heat.click()
    expect(image).to_have_attribute("src", original)
    heat.click()
    expect(heat).to_have_attribute("aria-pressed", "true")
    assert sum("/explain?" in url for url in ours.requested) == 1
