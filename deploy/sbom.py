"""Add dependencies and model weights to the SBOM of the CPU image.

`make sbom` pipes in cyclonedx-py's list of the lock; arguments are the output file and the models.
"""

import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from cyclonedx.model import (
    ExternalReference,
    ExternalReferenceType,
    HashAlgorithm,
    HashType,
    XsUri,
)
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from pins import OURS, graph

from service.models import store as stores
from service.models.manifest import Source
from service.models.store import BUNDLED, Store

ALGORITHMS = {"sha256": HashAlgorithm.SHA_256, "sha1": HashAlgorithm.SHA_1}


def main(target: Path, models: Iterable[str]) -> None:
    """Write the SBOM as CycloneDX JSON."""
    bom = Bom.from_json(json.load(sys.stdin))  # type: ignore[attr-defined] - a decorator adds it
    connect(bom)
    store = stores.locate(None)
    for name in sorted({*models, BUNDLED}):
        bom.components.add(model(store, name))
    target.write_text(JsonV1Dot6(bom).output_as_string(indent=1) + "\n", "utf-8")


def connect(bom: Bom) -> None:
    """Register the dependencies between packages."""
    root = bom.metadata.component
    assert root is not None  # noqa: S101 - cyclonedx-py took it from pyproject.toml
    by_name = {component.name: component for component in bom.components}
    for name, others in graph(f"{OURS}[trace,grpc]").items():
        component = root if name == OURS else by_name[name]
        bom.register_dependency(component, [by_name[other] for other in others])


def model(store: Store, name: str) -> Component:
    """Describe a model's weights, by their own digest or that of their source file."""
    described = store.manifest(name)
    source = described.source
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"model-{name}",
        name=name,
        version=described.version,
        description=described.description,
        licenses=[DisjunctiveLicense(name=described.licence)],
        hashes=[] if source else [HashType(alg=HashAlgorithm.SHA_256, content=store.verify(name))],
        external_references=[reference(source)] if source else [],
    )


def reference(source: Source) -> ExternalReference:
    """Describe where weights come from."""
    algorithm, _, digest = source.digest.partition(":")
    is_full = len(digest) == 2 * hashlib.new(algorithm).digest_size  # else a prefix
    return ExternalReference(
        type=ExternalReferenceType.DISTRIBUTION,
        url=XsUri(str(source.url)),
        comment=None if is_full else f"its {algorithm} begins with {digest}",
        hashes=[HashType(alg=ALGORITHMS[algorithm], content=digest)] if is_full else [],
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
