"""The tree of a model's labels: its classes, and the broader labels above them."""

import difflib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from service.errors import UnknownLabel
from service.models.hypernyms import Synset
from service.models.manifest import Label

ROOT = Synset("n00001740", "entity")  # WordNet's; above all classes
LONGEST = 64  # characters of an unknown name that an error repeats

Indices = npt.NDArray[np.intp]
Probabilities = npt.NDArray[np.float64]  # (classes,)


@dataclass(frozen=True, slots=True)
class Node:
    """A class, or a broader label, and the classes that it covers."""

    label: str
    wnid: str | None
    index: int | None  # of a class
    broader: tuple[str, ...]
    classes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LabelTree:
    """The nodes above and at the classes of a model, the most specific first, the root last.

    A node is more specific than another if it covers fewer classes, or as many and is deeper.
    """

    nodes: tuple[Node, ...]
    sizes: Indices  # (nodes,): how many classes each covers
    covered: Indices  # the classes of all nodes, one node after the other
    starts: Indices  # (nodes,): where each node's begin in `covered`
    by_name: Mapping[str, frozenset[int]]  # classes by case-folded name or WordNet id

    @classmethod
    def of(cls, labels: Sequence[Label]) -> Self:
        """Build the tree of a model's labels; those without hypernyms are below the root."""
        nodes = sorted(_nodes(labels), key=lambda node: (len(node.classes), -len(node.broader)))
        everything = tuple(range(len(labels)))
        nodes.append(Node(ROOT.name, ROOT.wnid, None, (), everything))
        sizes = np.array([len(node.classes) for node in nodes])
        covered = np.concatenate([node.classes for node in nodes])
        return cls(tuple(nodes), sizes, covered, np.cumsum(sizes) - sizes, _by_name(nodes))

    @property
    def is_flat(self) -> bool:
        """Whether the root is the only broader label."""
        return len(self.nodes) == len(self.nodes[-1].classes) + 1

    def most_specific(self, probabilities: Probabilities, specificity: float) -> tuple[Node, float]:
        """Return the most specific node that is as probable as `specificity`, 0 to 1, or more.

        A node's probability is the sum over its classes, and the root's is 1. Of nodes with as many
        classes it is the most probable, then the deepest. It is the rule of Deng et al., "Hedging
        Your Bets" (CVPR 2012), with the threshold given instead of fitted.
        """
        sums = np.add.reduceat(probabilities[self.covered], self.starts)
        sums[-1] = 1.0
        reached = sums >= specificity
        fewest = self.sizes[np.argmax(reached)]
        chosen = int(np.argmax(np.where(reached & (self.sizes == fewest), sums, -1.0)))
        return self.nodes[chosen], min(1.0, float(sums[chosen]))

    def find(self, name: str) -> frozenset[int]:
        """Find the classes of an index, WordNet id or name, of a class or of a broader label.

        A name that several labels have, in upper or lower case, means all of them. Raises
        `UnknownLabel`, with the nearest known name.
        """
        if name.isdecimal() and int(name) < len(self.nodes[-1].classes):
            return frozenset({int(name)})
        folded = name.casefold()
        if found := self.by_name.get(folded):
            return found
        shown = repr(name) if name.isprintable() and len(name) <= LONGEST else "of that name"
        near = difflib.get_close_matches(folded[:LONGEST], self.by_name, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UnknownLabel(f"there is no label {shown}{hint}")


def _nodes(labels: Sequence[Label]) -> list[Node]:
    """Make the nodes without the root: one for each class, and one for each hypernym."""
    nodes = []
    paths: dict[Synset, tuple[str, ...]] = {}
    covered = defaultdict[str | None, list[int]](list)  # by WordNet id
    for index, label in enumerate(labels):
        names = tuple(synset.name for synset in label.broader)
        nodes.append(Node(label.name, label.wnid, index, names, (index,)))
        paths |= {synset: names[depth + 1 :] for depth, synset in enumerate(label.broader)}
        for wnid in (label.wnid, *(synset.wnid for synset in label.broader)):
            covered[wnid].append(index)  # its own too: it may be the hypernym of other classes
    return nodes + [
        Node(synset.name, synset.wnid, None, path, tuple(covered[synset.wnid]))
        for synset, path in paths.items()
    ]


def _by_name(nodes: Sequence[Node]) -> dict[str, frozenset[int]]:
    found = defaultdict[str, frozenset[int]](frozenset)
    for node in nodes:
        found[node.label.casefold()] |= frozenset(node.classes)
        if node.wnid:
            found[node.wnid] |= frozenset(node.classes)
    return dict(found)
