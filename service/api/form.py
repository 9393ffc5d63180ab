"""The images and fields of a request: of a form's parts, or of a body that is none."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from service.api import parameters
from service.api.multipart import Part
from service.errors import InvalidParameter, MissingFile, ServiceError, TooLarge

FIELD = "file"  # the name of a form's image parts
# What other services and clients call them.
ALIASES = ("data", "file[]", "files", "files[]", "image", "images")
_MAX_OTHER_PARTS = 16  # form fields, and file inputs left empty
_MAX_FIELD = 2048  # bytes of a form field
_IMAGES = frozenset({FIELD, *ALIASES})
_CHARSET = "_charset_"  # names a form's encoding (RFC 7578); ignored


@dataclass(frozen=True, slots=True)
class Upload:
    """One image as received; its file name is for the response only.

    An image of an archive, or in base64, that cannot be read has no data but an `error`; one in
    JSON that is still to be fetched has none but its `url`.
    """

    filename: str | None
    data: bytes
    error: ServiceError | None = None
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Form:
    """The images of a request, and its form fields, or those of JSON, which have types."""

    uploads: list[Upload]
    fields: Mapping[str, Any]
    typed: bool = False

    @classmethod
    def of(cls, parts: list[Part]) -> Self:
        """Give the images of a form's parts, and its fields; raises `MissingFile`."""
        used = [part for part in parts if not _is_unused(part)]
        uploads = [Upload(part.filename, bytes(part.data)) for part in used if part.name in _IMAGES]
        fields = {
            part.name: part.data.decode("utf-8", "replace")
            for part in used
            if part.name and part.name not in _IMAGES
        }
        if not uploads:
            if any(part.name in _IMAGES for part in parts):
                raise MissingFile(f"the form's part {FIELD!r} is empty: no image was chosen")
            among = f", only {', '.join(fields)}" if fields else ""
            raise MissingFile(f"the form has no part {FIELD!r}{among}; send the image in one")
        return cls(uploads, fields)


@dataclass(slots=True)
class PartLimits:
    """Refuses invalid parts of a form before all of it has arrived."""

    max_files: int
    fields: Collection[str]
    files: set[int] = field(default_factory=set)  # numbers of the parts
    seen: dict[str, int] = field(default_factory=dict)  # names to numbers of the first parts

    def check(self, number: int, part: Part) -> None:
        """Check a part, as far as it has arrived."""
        most = self.max_files + _MAX_OTHER_PARTS
        if number > most:
            raise TooLarge(f"the request has over {most} parts; send fewer")
        if _is_unused(part):
            return
        first = self.seen.setdefault(part.name or "", number)
        if part.name in _IMAGES:
            self.files.add(number)
            if len(self.files) > self.max_files:
                raise TooLarge(f"the request has over {self.max_files} images; send fewer")
        elif not part.name:
            raise InvalidParameter(f"a part of the form has no name; call an image {FIELD!r}")
        elif part.name not in self.fields:
            raise parameters.unknown("form field", part.name, {FIELD, *self.fields}, self.seen)
        elif first != number:
            raise InvalidParameter(f"the form field {part.name} is given twice; give it once")
        elif len(part.data) > _MAX_FIELD:
            raise InvalidParameter(f"the form field {part.name} is over {_MAX_FIELD} bytes")


def _is_unused(part: Part) -> bool:
    """Tell whether a part is empty so far, as a browser's of an empty file input."""
    if part.name == _CHARSET:
        return True
    is_file = part.filename is not None or part.name in {None, "", *_IMAGES}
    return is_file and not part.filename and not part.data
