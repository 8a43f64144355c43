"""Text without what is not the document's own: odd characters, Project Gutenberg's header, remains of wiki markup."""

import html
import re
import unicodedata

# Ends of lines, and what separates as they do; a line feed stands for each.
_BREAKS = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1f\x85]")
# Control characters but tab and line feed, and the byte order mark; they are never part of a text.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")


def normalized(text: str, form: str, controls: bool) -> str:
    """The text in a Unicode form, with line feeds alone as ends of lines.

    Args:
        text: of a document.
        form: "NFC", "NFD", "NFKC" or "NFKD"; "" = as it is.
        controls: whether control characters are taken out.
    """
    text = _BREAKS.sub("\n", text)
    if controls:
        text = _CONTROLS.sub("", text)
    return unicodedata.normalize(form, text) if form else text  # type: ignore[arg-type]


# The last of the lines that end the header, and the first of those that begin the footer. Old books ("Etexts", before
# 2004) end in their header with "small print", and those of World Library Inc. have a licence between << and >>.
_EBOOK = r"(?:THIS |THE )?PROJECT GUTENBERG"
_START = re.compile(
    rf"^[ \t]*\*{{3}} ?START OF {_EBOOK}[^*]*\*{{3}}.*$"
    r"|^.*\*END[ \t]*\*?[ \t]*THE SMALL PRINT.*$"
    r"|^\*{3,5} +SMALL PRINT! .*\n(?:\[\"Small Print\".*$)?",
    re.MULTILINE | re.IGNORECASE,
)
_END = re.compile(
    rf"^[ \t]*\*{{3}} ?END OF {_EBOOK}.*$"
    r"|^[ \t]*(?:\*{3} ?)?End of (?:the |this )?Project Gutenberg.*$"
    r"|^[ \t]*End of this Etext of .*$",
    re.MULTILINE | re.IGNORECASE,
)
_MENTION = re.compile("Project Gutenberg", re.IGNORECASE)
_LICENCE = re.compile(r"<<THIS ELECTRONIC VERSION OF\b.{0,2000}?>>", re.DOTALL | re.IGNORECASE)
_CREDIT = re.compile(  # paragraphs before the book that say who made the file
    r"\A\s*(?:(?:Produced|E-text prepared|Transcribed|This etext was (?:produced|prepared)|Note: (?:Images|Project))\b"
    r"(?:.+\n)+\s*)+",
    re.IGNORECASE,
)
_NEAR = 30_000  # characters from the beginning in which a header ends
_LAST = 200  # characters that may follow a footer's only line: the rest of a title
_CLOSE = 500  # characters in which the next paragraph of a footer begins


def without_gutenberg(text: str) -> str:
    """Books of Project Gutenberg without headers, credits, licences and footers; any other text is unchanged."""
    if not _MENTION.search(text, 0, _NEAR):
        return text
    books, start = [], 0
    while start >= 0:
        end = _footer(text, start)
        stop = end.start() if end else len(text)
        for header in list(_START.finditer(text, start, min(stop, start + _NEAR)))[-1:]:
            start = header.end()
        books.append(_CREDIT.sub("", _LICENCE.sub("", text[start:stop])).strip("\n"))
        following = _START.search(text, end.end()) if end else None
        start = following.start() if following else -1
    return "\n\n".join(books)


def _footer(text: str, start: int) -> re.Match[str] | None:
    """The first line of the first footer. A line such as "End of Project Gutenberg's first year" in a text is none."""
    for found in _END.finditer(text, start):
        following = text[found.end() : found.end() + _CLOSE].partition("\n\n")[2].strip("\n")
        if (
            found[0].lstrip().startswith("*")
            or len(text) - found.end() <= _LAST
            or following.lstrip().startswith("***")
            or _END.match(following)
        ):
            return found
    return None


# Dumps of Wikipedia that WikiExtractor made leave these behind.
_MARKUP = (
    re.compile(r"^__[A-Z]+__[ \t]*$\n?", re.MULTILINE),  # switches of the parser
    re.compile(r"\[\[(?:Category|File|Image):[^\[\]\n]*(?:\]\]|$)", re.MULTILINE),
    re.compile(r"</?(?:br|(?:only|no)?include(?:only)?|section|gallery|templatestyles|center|poem|ref)\b[^<>\n]*>"),
    re.compile(r"\[https?://[^\s\[\]]+\]"),  # links without a text
    re.compile(r"(?<=\()[;, ]+"),  # a left-out pronunciation: "Chen (; born 1942)"
    re.compile(r" ?\( *\)"),
    re.compile(r" ?,(?= ?,)"),
)
_TAIL = ("See also", "References", "External links", "Notes", "Further reading", "Bibliography", "Sources", "Gallery")
_EMPTY_TAIL = re.compile(rf"(?<!\n)(?:\n+(?:{'|'.join(_TAIL)})\.)+\s*\Z")
_ARTICLE = re.compile(r"\A([^\n]{1,200})\n\n")


def is_wiki(text: str) -> bool:
    """Whether a text has the form of an article of WikiExtractor: a title, an empty line, a text that takes it up."""
    if not (title := _ARTICLE.match(text)):
        return False
    words = re.findall(r"\w{3,}|\w+$", html.unescape(title[1]).casefold())
    head = text[title.end() : title.end() + 200].casefold()
    return any(word in head for word in words)


def without_wiki(text: str) -> str:
    """An article of a wiki without remains of markup, and without last sections that are empty; else unchanged."""
    if not is_wiki(text):
        return text
    text = html.unescape(text)
    for pattern in _MARKUP:
        text = pattern.sub("", text)
    return _EMPTY_TAIL.sub("", text).strip()
