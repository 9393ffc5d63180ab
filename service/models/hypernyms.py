"""The hypernyms of labels: the path from a label to ever broader ones, by WordNet 3.0.

`model_store/wordnet/` has the table, the script that made it, and WordNet's licence.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TABLE = "wordnet/hypernyms.tsv"  # in the store; a line a synset: id, hypernym's id, name


@dataclass(frozen=True, slots=True)
class Synset:
    """A set of synonyms in WordNet, by its id and its first word."""

    wnid: str
    name: str


Hypernyms = tuple[Synset, ...]  # the nearest hypernym first; without the root, "entity"


def read(table: Path) -> Mapping[str, Hypernyms]:
    """Read the hypernyms of every WordNet id in the table; none without a table."""
    if not table.is_file():
        return {}
    rows = [line.split("\t") for line in table.read_text("utf-8").splitlines()]
    above = {wnid: hypernym for wnid, hypernym, _ in rows}
    synsets = {wnid: Synset(wnid, name) for wnid, _, name in rows}
    paths: dict[str, Hypernyms] = {"": ()}

    def path(wnid: str) -> Hypernyms:
        """Return a synset and its hypernyms; the root has none, and is left out."""
        if wnid not in paths:
            hypernym = above[wnid]
            paths[wnid] = (synsets[wnid], *path(hypernym)) if hypernym else ()
        return paths[wnid]

    return {wnid: path(hypernym) for wnid, hypernym in above.items()}
