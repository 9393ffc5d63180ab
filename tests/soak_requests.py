"""Requests of every shape that the service accepts, and what a good answer to each has to say.

A shape is a function of a `Chance` and photos whose answers are known; it gives a `Sent`.
"""

import base64
import io
import json
import random
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2
import mutations

from service.api.form import ALIASES, FIELD
from service.api.open_inference.tensors import LENGTH, OUTPUT

Ranking = Sequence[tuple[str, float]]  # labels and their probabilities, the most probable first
NEAR = 1e-5  # most difference of a probability, or of a feature
VIEWS = ("single", "ten", "adaptive")
OCTETS = {"content-type": "application/octet-stream"}
BROKEN = {400, 413, 415, 422}  # how one damaged image, or a damaged body, may be refused


@dataclass(frozen=True)
class Photo:
    """A photo, and the answers that it has to get."""

    name: str
    data: bytes
    rankings: Mapping[str, Ranking]  # of all classes, by views
    features: Sequence[float]

    @property
    def base64(self) -> str:
        """Its bytes as JSON has them."""
        return base64.b64encode(self.data).decode()


@dataclass(frozen=True)
class Sent:
    """A request; a 200 is checked by `check`, any other answer must be in `refused`."""

    path: str
    content: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[bytes], None] | None = None  # None: it must not be a 200
    refused: frozenset[int] = frozenset()
    method: str = "POST"


Shape = Callable[[random.Random, Sequence[Photo], str], Sent]
"""Makes a request of its photos to the model of that name."""


# Answers.


def assert_ranking(found: Ranking, photo: Photo, views: str) -> None:
    """Assert that a ranking begins the one that is known."""
    wanted = photo.rankings[views][: len(found)]
    assert found, "no labels"
    assert [label for label, _ in found] == [label for label, _ in wanted], (found, wanted)
    assert_near([share for _, share in found], [share for _, share in wanted])


def assert_near(found: Sequence[float], wanted: Sequence[float]) -> None:
    """Assert that numbers are those that are known."""
    assert len(found) == len(wanted)
    assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= NEAR, (found, wanted)


def ranking(answer: Mapping[str, Any]) -> Ranking:
    """Read the ranking of one image in an answer of /classify."""
    return [(one["label"], one["probability"]) for one in answer["predictions"]]


def classified(photos: Sequence[Photo], views: str, top_k: int = 5) -> Callable[[bytes], None]:
    """Check an answer of /classify: a ranking for each photo, in their order."""

    def check(content: bytes) -> None:
        answer = json.loads(content)
        assert answer["views"] == views
        results = answer["results"] if len(photos) > 1 else [answer]
        for photo, result in zip(photos, results, strict=True):
            if not is_passing(result):
                assert_ranking(ranking(result), photo, views)
                assert len(result["predictions"]) == min(top_k, len(photo.rankings[views]))

    return check


def is_passing(result: Mapping[str, Any]) -> bool:
    """Tell whether one image of several was refused because its worker or core ended."""
    return "error" in result and result["error"]["status"] in {500, 503, 504}


def rankings(photos: Sequence[Photo], read: Callable[[Any], Sequence[Ranking]]) -> Any:
    """Check the rankings that `read` finds in an answer in JSON: five labels of one view."""

    def check(content: bytes) -> None:
        for photo, found in zip(photos, read(json.loads(content)), strict=True):
            assert_ranking(found, photo, "single")

    return check


# Bodies.


def form(parts: Sequence[tuple[str, Any]]) -> tuple[bytes, dict[str, str]]:
    """Encode a form: its body and Content-Type."""
    made = httpx2.Request("POST", "http://here/", files=[*parts])
    return made.read(), {"content-type": made.headers["content-type"]}


def named(chance: random.Random, photos: Sequence[Photo]) -> list[tuple[str, Any]]:
    """Make a form's part of each photo, called `file` or one of its other names."""
    return [(chance.choice([FIELD, *ALIASES]), (photo.name, photo.data)) for photo in photos]


def encoded(chance: random.Random, photos: Sequence[Photo]) -> list[str]:
    """Give photos in base64, some of them as data URLs."""
    prefixes = ["", "data:image/jpeg;base64,"]
    return [chance.choice(prefixes) + photo.base64 for photo in photos]


def several(chance: random.Random, photos: Sequence[Photo]) -> list[Photo]:
    """Choose two to four photos."""
    return chance.sample(photos, chance.randint(2, 4))


def asked(chance: random.Random) -> dict[str, Any]:
    """Choose views and a number of labels."""
    views = chance.choices(VIEWS, weights=[8, 1, 1])[0]
    return {"views": views, "top_k": chance.choice([1, 3, 5])}


def as_json(value: object) -> tuple[bytes, dict[str, str]]:
    """Encode JSON: its body and Content-Type."""
    return json.dumps(value).encode(), {"content-type": "application/json"}


# Shapes of /classify.


def raw(chance: random.Random, photos: Sequence[Photo], _: str) -> Sent:
    """Send the image itself."""
    photo, params = chance.choice(photos), asked(chance)
    kind = {"content-type": chance.choice(["image/jpeg", "image/png", OCTETS["content-type"]])}
    return Sent("/classify", photo.data, kind, params, classified([photo], **params))


def form_of_one(chance: random.Random, photos: Sequence[Photo], _: str) -> Sent:
    """Send a form with one image, its options in the query."""
    photo, params = chance.choice(photos), asked(chance)
    return Sent("/classify", *form(named(chance, [photo])), params, classified([photo], **params))


def form_of_several(chance: random.Random, photos: Sequence[Photo], _: str) -> Sent:
    """Send a form with several images, its options in fields."""
    chosen, params = several(chance, photos), asked(chance)
    fields = [(name, (None, str(value))) for name, value in params.items()]
    body = form([*fields, *named(chance, chosen)])
    return Sent("/classify", *body, check=classified(chosen, **params))


def json_of_one(chance: random.Random, photos: Sequence[Photo], _: str) -> Sent:
    """Send JSON with one image."""
    photo, params = chance.choice(photos), asked(chance)
    body = as_json({"images": encoded(chance, [photo]), **params})
    return Sent("/classify", *body, check=classified([photo], **params))


def json_of_several(chance: random.Random, photos: Sequence[Photo], _: str) -> Sent:
    """Send JSON with several images."""
    chosen, params = several(chance, photos), asked(chance)
    body = as_json({"images": encoded(chance, chosen), **params})
    return Sent("/classify", *body, check=classified(chosen, **params))


def archive_of_zip(chance: random.Random, photos: Sequence[Photo], _: str) -> Sent:
    """Send a zip."""
    chosen, params, file = several(chance, photos), asked(chance), io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for photo in chosen:
            archive.writestr(photo.name, photo.data)
    kind = {"content-type": "application/zip"}
    return Sent("/classify", file.getvalue(), kind, params, classified(chosen, **params))


def archive_of_tar(chance: random.Random, photos: Sequence[Photo], _: str) -> Sent:
    """Send a tar."""
    chosen, params, file = several(chance, photos), asked(chance), io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for photo in chosen:
            member = tarfile.TarInfo(photo.name)
            member.size = len(photo.data)
            archive.addfile(member, io.BytesIO(photo.data))
    kind = {"content-type": "application/x-tar"}
    return Sent("/classify", file.getvalue(), kind, params, classified(chosen, **params))


def lines(chance: random.Random, photos: Sequence[Photo], _: str) -> Sent:
    """Ask for the answers as JSON lines, in any order."""
    chosen, params = several(chance, photos), asked(chance)

    def check(content: bytes) -> None:
        answers = [json.loads(line) for line in content.splitlines()]
        assert sorted(answer["index"] for answer in answers) == [*range(len(chosen))]
        for answer in answers:
            if not is_passing(answer):
                assert_ranking(ranking(answer), chosen[answer["index"]], params["views"])

    body, kind = form(named(chance, chosen))
    return Sent("/classify", body, {**kind, "accept": "application/x-ndjson"}, params, check)


def automatic(chance: random.Random, photos: Sequence[Photo], _: str) -> Sent:
    """Leave the views to the service, which says what it has chosen."""
    photo = chance.choice(photos)

    def check(content: bytes) -> None:
        answer = json.loads(content)
        assert_ranking(ranking(answer), photo, answer["views"])

    return Sent("/classify", photo.data, OCTETS, {"views": "auto"}, check)


def labels(chance: random.Random, photos: Sequence[Photo], _: str) -> Sent:
    """Ask for some labels, of which the probabilities are shares."""
    photo = chance.choice(photos)
    known = [*photo.rankings["single"]]
    chosen = sorted(chance.sample(range(len(known)), 3))
    own = [known[place] for place in chosen]
    total = sum(share for _, share in own)
    wanted = Photo("", b"", {"single": [(label, share / total) for label, share in own]}, ())
    names = ",".join(label for label, _ in own)
    params = {"views": "single", "labels": names, "renormalise": "true", "top_k": 3}
    check = classified([wanted], "single", 3) if total > NEAR else lambda _: None
    return Sent("/classify", photo.data, OCTETS, params, check)


def background(chance: random.Random, photos: Sequence[Photo], _: str) -> Sent:
    """Ask with low priority."""
    photo, params = chance.choice(photos), asked(chance)
    headers = {**OCTETS, "priority": "u=7"}
    return Sent("/classify", photo.data, headers, params, classified([photo], **params))


# Other routes.


def embed(chance: random.Random, photos: Sequence[Photo], _: str) -> Sent:
    """Ask for the features of one image or several."""
    chosen = chance.choice([several(chance, photos), [chance.choice(photos)]])

    def check(content: bytes) -> None:
        answer = json.loads(content)
        results = answer["results"] if len(chosen) > 1 else [answer]
        for photo, result in zip(chosen, results, strict=True):
            if not is_passing(result):
                assert_near(result["features"], photo.features)

    return Sent("/embed", *form(named(chance, chosen)), check=check)


def hugging_face(chance: random.Random, photos: Sequence[Photo], model: str) -> Sent:
    """Ask as Hugging Face's client does, with bytes or JSON."""
    photo = chance.choice(photos)
    bodies = [(photo.data, OCTETS), as_json({"inputs": photo.base64})]
    check = rankings([photo], lambda answer: [[(one["label"], one["score"]) for one in answer]])
    return Sent(f"/models/{model}", *chance.choice(bodies), check=check)


def torchserve(chance: random.Random, photos: Sequence[Photo], model: str) -> Sent:
    """Ask as curl asks TorchServe."""
    photo = chance.choice(photos)
    path = f"/predictions/{model}" + chance.choice(["", "/1"])
    check = rankings([photo], lambda answer: [[*answer.items()]])
    return Sent(path, photo.data, check=check, method=chance.choice(["POST", "PUT"]))


def kserve(chance: random.Random, photos: Sequence[Photo], model: str) -> Sent:
    """Ask as KServe's client of version 1 does."""
    chosen = several(chance, photos)
    shapes: list[Callable[[str], Any]] = [lambda image: image, lambda image: {"b64": image}]
    shape = chance.choice(shapes)
    body = as_json({"instances": [shape(photo.base64) for photo in chosen]})
    check = rankings(
        chosen,
        lambda answer: [ranking({"predictions": each}) for each in answer["predictions"]],
    )
    return Sent(f"/v1/models/{model}:predict", *body, check=check)


def infer(chance: random.Random, photos: Sequence[Photo], model: str) -> Sent:
    """Ask by the Open Inference Protocol, with JSON or a binary tensor after it."""
    chosen = several(chance, photos)
    tensor: dict[str, Any] = {"name": "image", "datatype": "BYTES", "shape": [len(chosen)]}
    data, headers = b"", {}
    if chance.random() < 0.5:
        data = b"".join(LENGTH.pack(len(photo.data)) + photo.data for photo in chosen)
        tensor["parameters"] = {"binary_data_size": len(data)}
    else:
        tensor["data"] = [photo.base64 for photo in chosen]
    outputs = [{"name": OUTPUT, "parameters": {"classification": 5}}]
    body, _ = as_json({"inputs": [tensor], "outputs": outputs})
    if data:
        headers["inference-header-content-length"] = str(len(body))
    path = f"/v2/models/{model}/infer"
    return Sent(path, body + data, headers, check=rankings(chosen, inferred))


def inferred(answer: Any) -> Sequence[Ranking]:
    """Read the rankings in an answer of the Open Inference Protocol, as labels."""
    (output,) = answer["outputs"]
    rows, columns = output["shape"]
    found = [(label, float(share)) for share, _, label in (x.split(":") for x in output["data"])]
    return [found[row * columns : (row + 1) * columns] for row in range(rows)]


# What is refused, in whole or in part.


def broken_image(chance: random.Random, _: Sequence[Photo], __: str) -> Sent:
    """Send a damaged image, of which something may be left."""
    data = mutations.mutated(chance.getrandbits(32), mutations.good())
    return Sent("/classify", data, OCTETS, {}, lambda _: None, frozenset(BROKEN))


def broken_among_good(chance: random.Random, photos: Sequence[Photo], _: str) -> Sent:
    """Send a text between images: it fails alone."""
    first, last = chance.sample(photos, 2)

    def check(content: bytes) -> None:
        one, two, three = json.loads(content)["results"]
        assert is_passing(two) or two["error"]["status"] in BROKEN
        for photo, result in ((first, one), (last, three)):
            if not is_passing(result):
                assert_ranking(ranking(result), photo, "single")

    text = ("text.jpg", chance.choice([b"", b"text", b"\xff\xd8\xff"]) + b" no image")
    parts = [*named(chance, [first]), (FIELD, text), *named(chance, [last])]
    return Sent("/classify", *form(parts), check=check)


def truncated(chance: random.Random, photos: Sequence[Photo], model: str) -> Sent:
    """Cut the body of a form, JSON or an archive short, or a photo to its first bytes."""
    shape = chance.choice([form_of_several, json_of_several, archive_of_zip, infer, kserve])
    whole = shape(chance, photos, model)
    content = whole.content[: chance.randrange(1, len(whole.content) // 2)]
    params = {name: value for name, value in whole.params.items() if name != "views"}
    return Sent(whole.path, content, whole.headers, params, None, frozenset(BROKEN))


def malformed(chance: random.Random, _: Sequence[Photo], __: str) -> Sent:
    """Send random bytes as any kind of body."""
    kind = chance.choice(
        ["application/json", "application/zip", "application/x-tar", "multipart/form-data",
         "multipart/form-data; boundary=x", "text/plain", "image/jpeg"]
    )  # fmt: skip
    content = chance.randbytes(chance.randrange(2000))
    return Sent("/classify", content, {"content-type": kind}, {}, None, frozenset(BROKEN))


def wrong_request(chance: random.Random, photos: Sequence[Photo], _: str) -> Sent:
    """Send a good image with a wrong field, parameter, header or model."""
    photo = chance.choice(photos)
    body, kind = form([("file", ("a", photo.data)), ("colour", (None, "red"))])
    nameless, nameless_kind = form([("picture", ("a", photo.data))])
    wrong: list[tuple[dict[str, Any], int]] = [
        ({"content": body, "headers": kind}, 422),
        ({"content": nameless, "headers": nameless_kind}, 422),
        ({"params": {"coverage": "0.9"}}, 409),
        ({"params": {"views": "all"}}, 422),
        ({"params": {"top_k": "0"}}, 422),
        ({"params": {"colour": "red"}}, 422),
        ({"params": {"labels": "no such label"}}, 404),
        ({"params": {"model": "other"}}, 404),
        ({"headers": {**OCTETS, "content-encoding": "gzip"}}, 415),
        ({"headers": {"content-type": "text/plain"}}, 415),
        ({"content": b""}, 400),
    ]
    changes, status = chance.choice(wrong)
    how = {"content": photo.data, "headers": OCTETS} | changes
    return Sent("/classify", **how, refused=frozenset({status}))


SHAPES: Mapping[Shape, int] = {  # and how often each is sent
    raw: 12, form_of_one: 12, form_of_several: 6, json_of_one: 6, json_of_several: 6,
    archive_of_zip: 4, archive_of_tar: 4, lines: 6, automatic: 1, labels: 3, background: 3,
    embed: 4, hugging_face: 6, torchserve: 6, kserve: 4, infer: 6, broken_image: 5,
    broken_among_good: 3, truncated: 4, malformed: 3, wrong_request: 6,
}  # fmt: skip
