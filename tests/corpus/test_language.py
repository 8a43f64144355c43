import gzip
import json
import re

import pytest

from scaling.corpus import documents
from scaling.corpus.extraction.language import Language, language
from tests.shared import SHARED, needs_shared

pytest.importorskip("py3langid")

ENGLISH = "The stage keeps the documents that are written in one of the languages that the user wants."
GERMAN = "Die Stufe behält die Dokumente, die in einer der Sprachen geschrieben sind, die gewünscht werden."


def table(*texts):
    n = len(texts)
    return documents.table(dict(id=list(map(str, range(n))), text=texts, file=[""] * n, place=range(n), url=[""] * n))


def test_documents_of_other_and_uncertain_languages_are_dropped_and_counted():
    kept, tally = language(table(ENGLISH, GERMAN, "12 34", ""), Language())
    assert kept["id"].to_pylist() == ["0"]
    assert kept["language"].to_pylist() == ["en"] and kept["language_score"][0].as_py() > 0.9
    assert tally.counts["language de"] == 1 and tally.counts["language uncertain"] == 2
    assert sum(tally.histograms["language_score"]) == 4
    kept, _ = language(table(ENGLISH, GERMAN), Language(keep=()))
    assert kept["language"].to_pylist() == ["en", "de"]
    assert language(table(), Language())[0].num_rows == 0


def test_an_unknown_language_is_refused():
    with pytest.raises(ValueError, match=r"knows no language 'xx'; it knows .*en"):
        language(table(ENGLISH), Language(keep=("en", "xx")))


# ISO 639-3 codes of files, and codes of the model, for languages that have one of two letters and that it knows.
KNOWN = dict(
    re.findall(
        r"(\w+):(\w+)",
        "afr:af amh:am bel:be ben:bn bre:br bul:bg cat:ca ces:cs cym:cy dan:da deu:de eng:en epo:eo eus:eu fin:fi "
        "fra:fr fry:fy gle:ga glg:gl guj:gu hau:ha heb:he hin:hi hrv:hr hun:hu hye:hy ind:id isl:is ita:it jav:jv "
        "jpn:ja kan:kn kat:ka kaz:kk khm:km kin:rw kir:ky kor:ko lao:lo lit:lt mal:ml mar:mr mkd:mk mlt:mt mya:my "
        "nld:nl nno:nn nob:no oci:oc pan:pa pol:pl por:pt ron:ro rus:ru sin:si slk:sk slv:sl som:so spa:es sqi:sq "
        "srp:sr sun:su swe:sv tam:ta tel:te tgk:tg tgl:tl tha:th tur:tr uig:ug ukr:uk urd:ur vie:vi xho:xh "
        "yor:yo zul:zu",
    )
)


@needs_shared("data/more/corpus/udhr_by_language.jsonl.gz")
def test_declarations_of_human_rights_in_many_languages():
    with gzip.open(SHARED / "data/more/corpus/udhr_by_language.jsonl.gz") as file:
        rows = [row for row in map(json.loads, file) if row["lang"] in KNOWN]
    found = language(table(*(row["text"] for row in rows)), Language(keep=(), least=0.0))[0]["language"].to_pylist()
    wrong = [(row["lang"], code) for row, code in zip(rows, found, strict=True) if code != KNOWN[row["lang"]]]
    assert len(rows) >= 35 and len(wrong) <= 1, wrong
