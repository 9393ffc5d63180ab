"""Hypernyms: the committed table, and the paths that are read from it."""

import runpy
from pathlib import Path

from conftest import ROOT

from service.models import hypernyms
from service.models.hypernyms import Synset
from service.models.store import Store

STORE = ROOT / "model_store"
BEAGLE = (
    *("hound", "hunting dog", "dog", "canine", "carnivore", "placental", "mammal"),
    *("vertebrate", "chordate", "animal", "organism", "living thing"),
)


def test_paths_are_from_the_nearest_to_the_broadest_without_the_root(tmp_path: Path) -> None:
    table = tmp_path / "table.tsv"
    table.write_text("n1\t\tentity\nn2\tn1\tanimal\nn3\tn2\tdog\nn4\tn3\tbeagle\nn5\tn3\tpug\n")
    dog, animal = Synset("n3", "dog"), Synset("n2", "animal")
    paths = hypernyms.read(table)
    assert paths == {"n1": (), "n2": (), "n3": (animal,), "n4": (dog, animal), "n5": (dog, animal)}
    assert paths["n4"] is paths["n5"]  # a thousand labels share them


def test_no_table_is_no_hypernyms(tmp_path: Path) -> None:
    assert hypernyms.read(tmp_path / "none.tsv") == {}


def test_every_label_of_imagenet_has_broader_ones() -> None:
    labels = Store(STORE, STORE).labels("bvlc_googlenet")
    assert tuple(synset.name for synset in labels[162].broader) == BEAGLE
    assert labels[162].broader[2] == Synset("n02084071", "dog")
    assert all(label.broader for label in labels)
    names = {synset.name for label in labels for synset in label.broader}
    assert not names & {"entity", "physical entity", "abstraction", "object", "whole"}


def test_labels_without_a_wordnet_id_have_none() -> None:
    assert not any(label.broader for label in Store(STORE, STORE).labels("digits"))


# The script that made the table.


SCRIPT = runpy.run_path(str(STORE / "wordnet/hypernyms.py"))
DOG = (
    "02084071 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 003 @ 02083346 n 0000 "
    "@ 01317541 n 0000 ~ 01322604 n 0000 | a member of the genus Canis  \n"
)
DOMESTIC_ANIMAL = "01317541 05 n 02 domestic_animal 0 domesticated_animal 0 000 | any of  \n"


def test_the_first_word_and_the_first_hypernym_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "data.noun"
    file.write_text(f"  1 This software and database is\n{DOG}{DOMESTIC_ANIMAL}")
    assert SCRIPT["read"](file) == {
        "n02084071": ("dog", "n02083346"),
        "n01317541": ("domestic animal", ""),
    }


def test_the_most_abstract_hypernyms_are_left_out() -> None:
    synsets = {"n3": ("artifact", "n2"), "n2": ("whole", "n1"), "n1": ("entity", "")}
    synsets = {wnid: SCRIPT["Synset"](*synset) for wnid, synset in synsets.items()}
    assert [SCRIPT["above"](wnid, synsets) for wnid in ("n3", "n2", "n1")] == ["n1", "n1", ""]
