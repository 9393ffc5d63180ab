"""The broader labels of ImageNet's 1000: their hypernyms in WordNet 3.0.

    python model_store/wordnet/hypernyms.py /usr/share/wordnet/data.noun

writes `hypernyms.tsv` beside this file; Debian's package `wordnet-base` has WordNet's file. Each
line is a synset: its WordNet id, its hypernym's id (none for the root), and its first word. Of
several hypernyms the first is taken, so that the synsets are a tree, and the most abstract
(`TOO_ABSTRACT`) are left out. WordNet's licence is in LICENSE.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
LABELS = HERE.parent / "imagenet.tsv"
TABLE = HERE / "hypernyms.tsv"
TOO_ABSTRACT = {"physical entity", "abstraction", "object", "whole"}


class Synset(NamedTuple):
    """A synset of WordNet: its first word, and its first hypernym's id, empty for the root."""

    word: str
    hypernym: str


def read(file: Path) -> dict[str, Synset]:
    """Read the nouns of WordNet, by their id; wndb(5WN) has the format."""
    lines = file.read_text("ascii").splitlines()
    return {f"n{line[:8]}": parse(line) for line in lines if not line.startswith("  ")}


def parse(line: str) -> Synset:
    """Parse a synset: offset, file, type, word count, words with ids, pointer count, pointers."""
    fields = line.partition(" | ")[0].split()
    pointers = fields[5 + 2 * int(fields[3], 16) :]  # each is a kind, an offset, a type and words
    hypernyms = [
        f"n{offset}"
        for kind, offset in zip(pointers[::4], pointers[1::4], strict=False)
        if kind in {"@", "@i"}
    ]
    return Synset(fields[4].replace("_", " "), hypernyms[0] if hypernyms else "")


def above(wnid: str, synsets: Mapping[str, Synset]) -> str:
    """Return the nearest hypernym's id that is not too abstract."""
    hypernym = synsets[wnid].hypernym
    while hypernym and synsets[hypernym].word in TOO_ABSTRACT:
        hypernym = synsets[hypernym].hypernym
    return hypernym


def main(file: Path) -> None:
    """Write the table, in the order of the ids."""
    synsets = read(file)
    table: dict[str, str] = {}
    for line in LABELS.read_text("utf-8").splitlines():
        wnid = line.partition("\t")[0]
        while wnid and wnid not in table:
            table[wnid] = above(wnid, synsets)
            wnid = table[wnid]
    rows = (f"{wnid}\t{above}\t{synsets[wnid].word}\n" for wnid, above in sorted(table.items()))
    TABLE.write_text("".join(rows), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
