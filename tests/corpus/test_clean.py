import gzip
import json

import pytest

from scaling.corpus.extraction import clean
from tests.shared import SHARED, needs_shared

BOOK = """The Project Gutenberg EBook of Tea, by A. Nobody

This eBook is for the use of anyone anywhere at no cost.

Title: Tea

*** START OF THIS PROJECT GUTENBERG EBOOK TEA ***




Produced by B. Nobody and the Online
Distributed Proofreading Team.


TEA

A chapter. The licence says *** and END OF nothing.



End of the Project Gutenberg EBook of Tea, by A. Nobody

*** END OF THIS PROJECT GUTENBERG EBOOK TEA ***

***** This file should be named 1.txt *****
"""

ARTICLE = """Chen &amp; Co

Chen &amp; Co (; , born 1942) was founded () in Bath. [[File:A.jpg|thumb|It]]
__TOC__
History.
It grew<br>fast [http://x.org/a].
See also.
Tea
References.

External links.
"""


def test_normal_form_and_controls():
    text = "\ufeffe\u0301\r\nx\ry\x00\x1bz\t\u200d\u0085w\x0cv\x0bu\x1et"
    assert clean.normalized(text, "NFC", True) == "é\nx\nyz\t\u200d\nw\nv\nu\nt"
    assert clean.normalized("e\u0301\x00", "", False) == "e\u0301\x00"
    assert clean.normalized("ﬁ", "NFKC", True) == "fi"


def test_a_book_keeps_its_own_text():
    assert clean.without_gutenberg(BOOK) == "TEA\n\nA chapter. The licence says *** and END OF nothing."
    assert clean.without_gutenberg(BOOK.replace(" Gutenberg", " Goodberg").replace(" GUTENBERG", "")) != BOOK[:0]
    other = "*** START OF THE SHOW ***\nProduced by me.\n*** END OF THE SHOW ***"
    assert clean.without_gutenberg(other) == other


def test_a_line_that_only_looks_like_a_footer_and_a_second_book_stay():
    begin, end = BOOK.split("A chapter.")
    line = "End of Project Gutenberg's first decade came soon.\n\n" + "More text follows. " * 20 + "A chapter."
    assert clean.without_gutenberg(begin + line + end).startswith(f"TEA\n\n{line}")
    coffee = clean.without_gutenberg(BOOK + "\n" + BOOK.replace("TEA\n\nA", "COFFEE\n\nA"))
    assert coffee == "\n\n".join(clean.without_gutenberg(BOOK).replace("TEA", name) for name in ("TEA", "COFFEE"))


def test_old_books_end_their_header_in_small_print():
    old = "Project Gutenberg's Etext of Tea\n***START**THE SMALL PRINT!**START***\nNo charge.\n"
    old += "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n\nTEA\n\n"
    assert clean.without_gutenberg(
        old + "<<THIS ELECTRONIC VERSION OF\nTEA>>\n\nHot.\n\nEnd of this Etext of Tea\n"
    ).split() == ["TEA", "Hot."]


def test_an_article_loses_markup_and_empty_sections():
    cleaned = "Chen & Co\n\nChen & Co (born 1942) was founded in Bath. \nHistory.\nIt grewfast .\nSee also.\nTea"
    assert clean.without_wiki(ARTICLE) == cleaned
    open_link = ARTICLE.replace("[[File:A.jpg|thumb|It]]", "[[File:A.jpg|thumb")
    assert clean.without_wiki(open_link) == cleaned
    other = "Call f () in C.\nReferences.\n"
    assert clean.without_wiki(other) == other


@pytest.mark.parametrize("text", ["\n" * 300_000, "(" * 300_000, "Project Gutenberg " + "*** START OF " * 50_000])
def test_no_text_takes_long(text):
    clean.without_wiki(f"Tea\n\nTea {text}")
    clean.without_gutenberg(text)


def shared(path):
    with gzip.open(SHARED / path) as file:
        return [clean.normalized(json.loads(line)["text"], "NFC", True) for line in file]


@needs_shared("data/books")
def test_real_books():
    books = shared("data/books/gutenberg_books.jsonl.gz")
    assert len(books) == 101
    for book in books:
        cleaned = clean.without_gutenberg(book)
        assert 500 < len(book) - len(cleaned) < 26_000
        # Two books mention it themselves, as transcribers' notes do.
        assert "Project Gutenberg-tm" not in cleaned and "*** START" not in cleaned and "*** END" not in cleaned


@needs_shared("data/wikipedia")
@needs_shared("data/c4")
def test_real_articles_and_pages():
    articles = shared("data/wikipedia/enwiki_sample.jsonl.gz")
    assert sum(map(clean.is_wiki, articles)) / len(articles) > 0.99
    cleaned = list(map(clean.without_wiki, articles))
    assert sum("(;" in text or "()" in text or "__" in text for text in articles) > 400
    assert sum("(;" in text or "()" in text or "__" in text for text in cleaned) < 20
    assert sum(map(len, cleaned)) > 0.995 * sum(map(len, articles))
    pages = shared("data/c4/c4_en_sample.jsonl.gz")
    assert list(map(clean.without_gutenberg, map(clean.without_wiki, pages))) == pages
