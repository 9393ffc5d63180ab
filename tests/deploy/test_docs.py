"""The documentation is true: its commands run, its tables are those of the code.

The language of a fenced block says what is done with it:

- `sh` is run by bash; `googlenet-service serve` runs beside the commands that follow it.
- `python` is run by our Python, or that of .venv-clients if it imports Triton's client.
- `toml` is written to the file that its first line names.
- `text` cannot be run here; its first line says what it needs.
- `html`, `javascript`, `java` and `go` are run by `test_client_examples.py`.
- `json`, `mermaid` and `yaml` are examples. There are no other languages.
"""

import hashlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT, Served, fake_backend, missing
from prometheus_client.parser import text_string_to_metric_families
from test_classify import parts, plain, service

from service.api.statuses import HTTP, STATUS
from service.models.store import Store
from service.settings import Settings

# Generated pages.

PAGES = runpy.run_path(str(ROOT / "docs/reference.py"))["pages"]()


def test_the_figure_of_views_is_that_of_their_table() -> None:
    made = runpy.run_path(str(ROOT / "benchmarks/views_figure.py"))
    points = made["read"]((ROOT / "docs/views.md").read_text("utf-8"))
    names = ["single", "ten", "adaptive", "adaptive:paper", "dense", "paper"]
    assert [point.views for point in points] == names
    figure = (ROOT / "docs/views.svg").read_text("utf-8")
    assert figure == made["figure"](points), "run python benchmarks/views_figure.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_reference_is_up_to_date(page: Path) -> None:
    assert page.read_text("utf-8") == PAGES[page], "run python docs/reference.py"


def test_the_reference_has_no_other_page() -> None:
    assert {*(ROOT / "docs/reference").iterdir()} == {*PAGES}


def test_the_reference_has_every_metric() -> None:
    keyed = Settings(model="fake", api_key_hashes=f"web:{hashlib.sha256(b'key').hexdigest()}")
    with service(lambda *_: fake_backend(), keyed) as client:
        client.post("/classify", files=parts(plain("red")), headers={"X-API-Key": "key"})
        families = [*text_string_to_metric_families(client.get("/metrics").text)]
    exported = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in families
        if re.match(r"googlenet_(?!worker_process_)\w+(?<!_created)$", family.name)
    }
    written = (ROOT / "docs/reference/metrics.md").read_text("utf-8")
    assert {*re.findall(r"^\| `(\w+)` \|", written, re.MULTILINE)} == exported


def test_the_reference_has_every_error_and_every_status() -> None:
    written = (ROOT / "docs/reference/errors.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| ([A-Z_]+) \|", written, re.MULTILINE)
    assert {int(status) for status, *_ in rows} == HTTP
    assert {word for _, word, _ in rows} == {error.code for error in STATUS}


# Commands.

EXAMPLES = ("sh", "python", "toml")
SHOWN = ("json", "mermaid", "yaml")
CLIENTS = ("html", "javascript", "java", "go")
DOCUMENTS = sorted(
    page
    for folder in ("*.md", "docs/**/*.md", "benchmarks/**/*.md", "deploy/**/*.md")
    for page in ROOT.glob(folder)
)
OTHERS = "import tritonclient"

# A page is executed from its top to its end. A service runs until the next `serve`; before the
# first one the address of the examples is that of the fixture `served`.
SHELL = r"""
set -euo pipefail
exec 3>&2; BASH_XTRACEFD=3  # commands and errors on one stream
serving=
stop() { if [ "$serving" ]; then kill "$serving"; wait "$serving"; fi; serving=; }
trap stop EXIT
googlenet-service() {
    local -; set +x
    local words=("${@//localhost:8000/127.0.0.1:$port}")
    [ "$1" = serve ] || { "$PYTHON" -m service "${words[@]}"; return; }
    stop
    "$PYTHON" -m service "${words[@]}" --port 0 2> serving.log &
    serving=$! port=
    until [ "$port" ] && command curl -sf "127.0.0.1:$port/readyz" > readyz.txt; do
        kill -0 "$serving" || { cat serving.log >&2; exit 1; }
        sleep 0.1
        port=$(sed -n 's/.*running on http:[^:]*:\([0-9]*\).*/\1/p' serving.log)
    done
}
curl() { command curl -sSf "${@//localhost:8000/127.0.0.1:$port}"; }
make() { command make --directory "$ROOT" --dry-run "$@"; }
python() { sed "s/localhost:8000/127.0.0.1:$port/" | "$PYTHON" -; }
set -x
"""


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found[1], found[2])
        for found in re.finditer(r"^ *```(.*)\n((?s:.*?))^ *```$", text, re.MULTILINE)
    ]


BLOCKS = [block for page in DOCUMENTS for block in blocks(page)]
RUN = sorted({block.page for block in BLOCKS if block.language in EXAMPLES})


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_that_is_not_run_says_why(block: Block) -> None:
    assert block.language in (*EXAMPLES, *SHOWN, *CLIENTS, "text")
    if block.language == "text":
        assert block.text.startswith("# needs "), "its first line is to say why it is not run"


def script(page: Path) -> str:
    """Return the script of all blocks of a page, except Triton's client."""
    steps = [SHELL]
    for number, block in enumerate(blocks(page)):
        steps.append(f": {block}")
        end = f"END_{number}"
        match block.language:
            case "sh":
                steps.append(block.text)
            case "python" if OTHERS not in block.text:
                steps.append(f"python <<'{end}'\n{block.text}\n{end}")
            case "toml":
                named = re.match(r"# (\S+)\n", block.text)
                assert named, f"{block}: its first line is to say which file this is"
                where = shlex.quote(named[1])
                steps.append(f"mkdir -p \"$(dirname {where})\"\ncat > {where} <<'{end}'")
                steps.append(f"{block.text}{end}")
    return "\n".join(steps)


@pytest.fixture
def desk(shared: Path, real_store: Store, tmp_path: Path) -> Path:
    """A folder with the files that the documentation names, and a model store."""
    for name in ("beagle.jpg", "tractor.jpg"):
        shutil.copy(shared / "photos/flickr" / name, tmp_path)
    (tmp_path / "photos").mkdir()
    for photo in sorted((shared / "photos").glob("*.JPEG"))[:4]:
        shutil.copy(photo, tmp_path / "photos")
    digits = ROOT / "model_store/digits"
    shutil.copy(digits / "weights.safetensors", tmp_path / "parts.safetensors")
    shutil.copytree(digits / "held_out", tmp_path / "belt")
    for folder in ("images", "others"):
        for parity in ("even", "odd"):
            (tmp_path / folder / parity).mkdir(parents=True)
        for image in (digits / "held_out").iterdir():
            shutil.copy(image, tmp_path / folder / ("even", "odd")[int(image.stem) % 2])
    (tmp_path / "store").mkdir()
    (tmp_path / "store/bvlc_googlenet").symlink_to(real_store.root / "bvlc_googlenet")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_run(page: Path, desk: Path, served: Served) -> None:
    """Run all blocks of a page in one shell."""
    for tool in ("bash", "curl", "make"):
        if not shutil.which(tool):
            missing(tool)
    # For a fast start.
    quick = {"MAX_BATCH": "2", "CPU_THREADS": "1", "PRECISION": "float32"}
    own = {"MODEL_STORE": str(desk / "store"), "DOWNLOAD_WEIGHTS": "False", "PORT": "0"}
    done = subprocess.run(  # noqa: S603 - our own documentation
        ["bash", "-c", script(page)],  # noqa: S607 - whichever bash there is
        cwd=desk, capture_output=True, text=True, timeout=600, check=False,
        env={
            **os.environ,
            **{f"GOOGLENET_{name}": value for name, value in {**quick, **own}.items()},
            "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "ROOT": str(ROOT),
            "port": str(served.port),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_tritons_client_runs(desk: Path, served: Served) -> None:
    python = ROOT / ".venv-clients/bin/python"
    if not python.exists():
        missing("the environment of Triton's client (make clients)")
    (theirs,) = (block for block in BLOCKS if OTHERS in block.text)
    done = subprocess.run(  # noqa: S603 - our own documentation
        [python, "-c", theirs.text.replace("localhost:8000", f"127.0.0.1:{served.port}")],
        cwd=desk, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ":162:beagle" in done.stdout


# Links.


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as on GitHub."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}


LINKS = [
    (page, link)
    for page in DOCUMENTS
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    if not link.startswith("https://")
]


@pytest.mark.parametrize(
    ("page", "link"), LINKS, ids=[f"{page.relative_to(ROOT)}-{link}" for page, link in LINKS]
)
def test_a_link_has_a_target(page: Path, link: str) -> None:
    path, _, anchor = link.partition("#")
    there = (page.parent / path).resolve() if path else page
    assert there.exists()
    assert not anchor or anchor in anchors(there)


def test_the_index_has_every_page() -> None:
    index = ROOT / "docs/README.md"
    linked = {(page.parent / link.partition("#")[0]).resolve() for page, link in LINKS
              if page == index}  # fmt: skip
    assert {*(ROOT / "docs").rglob("*.md")} - {index} <= linked
