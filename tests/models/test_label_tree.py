"""The label tree: the most specific label that is probable enough, and labels by name."""

from collections.abc import Sequence

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from service.errors import UnknownLabel
from service.models.hypernyms import Synset
from service.models.label_tree import LabelTree, Node, Probabilities
from service.models.manifest import Label
from service.models.store import Store

DRAWS = 64  # probabilities are multiples of 1/64, whose sums are exact

IMAGENET = LabelTree.of(Store(ROOT, ROOT / "model_store").labels("bvlc_googlenet"))


def label(name: str, *broader: str) -> Label:
    synsets = tuple(Synset(f"n_{broad}", broad) for broad in broader)
    return Label(name=name, wnid=f"n_{name}", broader=synsets)


# Two dogs and a cat, a chair, and something that WordNet does not know.
LABELS = (
    label("beagle", "hound", "dog", "animal"),
    label("pug", "dog", "animal"),
    label("tabby", "cat", "animal"),
    label("chair", "furniture"),
    Label(name="thing", wnid=None),
)
TREE = LabelTree.of(LABELS)


def chosen(probabilities: Sequence[float], specificity: float) -> tuple[str, float]:
    node, probability = TREE.most_specific(np.array(probabilities), specificity)
    return node.label, probability


@pytest.mark.parametrize(
    ("specificity", "answer"),
    [
        (0.1, ("beagle", 0.5)),
        (0.5, ("beagle", 0.5)),
        (0.6, ("dog", 0.75)),
        (0.8, ("animal", 0.875)),
        (0.9, ("entity", 1.0)),
        (1.0, ("entity", 1.0)),
    ],
)
def test_a_broader_label_is_chosen_as_more_is_asked(
    specificity: float, answer: tuple[str, float]
) -> None:
    assert chosen([0.5, 0.25, 0.125, 0.0625, 0.0625], specificity) == answer


def test_a_class_is_chosen_before_a_broader_label_of_it_alone() -> None:
    assert chosen([0, 0, 1, 0, 0], 1) == ("tabby", 1)  # and not cat


def test_the_most_probable_of_equally_specific_labels_is_chosen() -> None:
    assert chosen([0.2, 0.3, 0.1, 0.4, 0], 0.15) == ("chair", 0.4)


def test_the_root_is_certain_though_floats_are_not() -> None:
    assert chosen([0.1999999] * 5, 1) == ("entity", 1)


def test_a_tree_without_broader_labels_is_flat() -> None:
    assert not TREE.is_flat
    assert LabelTree.of([Label(name=name, wnid=None) for name in "012"]).is_flat


def test_a_class_that_is_a_hypernym_of_others_is_covered_by_it() -> None:
    tree = LabelTree.of([label("beagle", "dog", "animal"), label("dog", "animal")])
    node, probability = tree.most_specific(np.array([0.5, 0.5]), 0.9)
    assert (node.label, node.index, node.classes, probability) == ("dog", None, (0, 1), 1)


# Any tree, any probabilities.


@st.composite
def trees(draw: st.DrawFn) -> tuple[LabelTree, Probabilities]:
    """Draw a tree of up to 8 classes below 6 broader labels, and probabilities."""
    paths: list[tuple[Synset, ...]] = [()]
    for number in range(draw(st.integers(0, 6))):
        paths.append((Synset(f"n{number}", f"broad {number}"), *draw(st.sampled_from(paths))))
    above = draw(st.lists(st.sampled_from(paths), min_size=1, max_size=8))
    labels = [Label(name=f"{n}", wnid=None, broader=path) for n, path in enumerate(above)]
    classes = st.integers(0, len(labels) - 1)
    draws = draw(st.lists(classes, min_size=DRAWS, max_size=DRAWS))
    return LabelTree.of(labels), np.bincount(draws, minlength=len(labels)) / DRAWS


SPECIFICITY = st.floats(0, 1, exclude_min=True)


def rank(node: Node) -> tuple[int, int]:
    """The most specific node has the lowest."""
    return len(node.classes), -len(node.broader)


@given(trees(), SPECIFICITY)
def test_no_more_specific_label_is_as_probable(
    drawn: tuple[LabelTree, Probabilities], specificity: float
) -> None:
    tree, probabilities = drawn
    node, probability = tree.most_specific(probabilities, specificity)
    assert probability == probabilities[[*node.classes]].sum() >= specificity
    for other in tree.nodes:
        reached = probabilities[[*other.classes]].sum()
        if len(other.classes) < len(node.classes) or (
            other.classes == node.classes and rank(other) < rank(node)
        ):
            assert reached < specificity
        elif len(other.classes) == len(node.classes):
            assert reached <= probability


@given(trees())
def test_a_low_specificity_gives_the_most_probable_class(
    drawn: tuple[LabelTree, Probabilities],
) -> None:
    tree, probabilities = drawn
    node, probability = tree.most_specific(probabilities, float(probabilities.max()))
    assert node.index is not None
    assert probability == probabilities.max()


@given(trees(), SPECIFICITY, SPECIFICITY)
def test_a_higher_specificity_never_gives_a_label_further_down(
    drawn: tuple[LabelTree, Probabilities], one: float, other: float
) -> None:
    tree, probabilities = drawn
    low, _ = tree.most_specific(probabilities, min(one, other))
    high, _ = tree.most_specific(probabilities, max(one, other))
    assert len(high.classes) >= len(low.classes)
    if {*high.classes} <= {*low.classes}:  # on the same path
        assert len(high.broader) <= len(low.broader)


# Labels by name.


@pytest.mark.parametrize("name", ["1", "pug", "Pug", "n_pug"])
def test_a_class_is_found_by_index_name_and_wordnet_id(name: str) -> None:
    assert TREE.find(name) == {1}


@pytest.mark.parametrize("name", ["dog", "DOG", "n_dog"])
def test_the_classes_below_a_broader_label_are_found(name: str) -> None:
    assert TREE.find(name) == {0, 1}


@pytest.mark.parametrize("name", ["entity", "n00001740"])
def test_all_classes_are_below_the_root(name: str) -> None:
    assert TREE.find(name) == {*range(5)}


def test_a_name_that_several_labels_have_means_all_of_them() -> None:
    found = {node.label for node in IMAGENET.nodes if node.index in IMAGENET.find("mask")}
    assert found == {"mask", "gasmask", "ski mask"}


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("begle", "there is no label 'begle'; did you mean beagle?"),
        ("hounds", "there is no label 'hounds'; did you mean hound?"),
        ("5", "there is no label '5'"),
        ("x" * 65, "there is no label of that name"),
        ("a\nb", "there is no label of that name"),
    ],
)
def test_an_unknown_label_is_named_with_the_nearest(name: str, sentence: str) -> None:
    with pytest.raises(UnknownLabel) as caught:
        TREE.find(name)
    assert str(caught.value) == sentence


# ImageNet's.


def test_imagenets_dogs_are_a_label() -> None:
    assert len(IMAGENET.find("dog")) == 118
    assert len(IMAGENET.find("n02084071")) == 118
    assert IMAGENET.find("dog") < IMAGENET.find("canine") < IMAGENET.find("animal")
