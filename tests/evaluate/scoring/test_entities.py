"""F1 of entities. Random tags gave the same numbers as seqeval 1.2.2."""

import pytest

from scaling.evaluate.scoring.entities import Entity, entities, entity_scores


def test_a_case_by_hand():
    right = [["B-per", "I-per", "O", "B-loc"], ["O", "B-org", "I-org", "I-org"]]
    said = [["B-per", "I-per", "O", "B-per"], ["O", "B-org", "I-org", "O"]]
    found = entity_scores(right, said)  # one of three is right in kind and words
    assert found == {"f1": pytest.approx(1 / 3), "precision": pytest.approx(1 / 3), "recall": pytest.approx(1 / 3)}
    assert entity_scores(right, right)["f1"] == 1
    assert entity_scores([["O"]], [["O"]]) == {"f1": 0.0, "precision": 0.0, "recall": 0.0}
    assert entity_scores([["O", "O"]], [["B-per", "O"]])["precision"] == 0


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("B-a I-a O B-a", [("a", 0, 1), ("a", 3, 3)]),
        ("B-a B-a", [("a", 0, 0), ("a", 1, 1)]),
        ("O I-a I-a", [("a", 1, 2)]),  # nothing of its kind is before it
        ("B-a I-b I-b", [("a", 0, 0), ("b", 1, 2)]),
        ("I-a O I-a", [("a", 0, 0), ("a", 2, 2)]),
        ("B-creative-work I-creative-work", [("creative-work", 0, 1)]),
    ],
)
def test_entities_of_a_sentence(tags, found):
    assert entities(tags.split()) == [Entity(*each) for each in found]
