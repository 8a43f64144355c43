"""The books of the embedded corpus: where each begins and ends in its Project Gutenberg text, and when it appeared.

``begin`` and ``end`` are quoted after quotes and dashes are made plain; ``begin`` is kept, ``end`` is not.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Book:
    title: str
    author: str
    year: int  # first published (for a translation, the translation)
    record_title: str  # as the input file has it
    record_author: str
    begin: str
    end: str


END = "\nEnd of "

BOOKS = (
    Book("Grimm's Fairy Tales (edited by Frances Jenkins Olcott)", "Jacob and Wilhelm Grimm", 1922,
         "Grimm's Fairy Tales", "Grimm, Jacob", "In old times, when wishing was having", "Transcriber's Notes"),
    Book("The Dawn of a To-morrow", "Frances Hodgson Burnett", 1906,
         "The Dawn of a To-morrow", "Burnett, Frances Hodgson", "There are always two ways of looking", "***END OF"),
    Book("A Christmas Carol", "Charles Dickens", 1843,
         "A Christmas CarolThe original manuscript", "Dickens, Charles",
         "Marley was dead: to begin with.", "THE END."),
    Book("The Battle of Life", "Charles Dickens", 1846,
         "The Battle of Life: A Love Story", "Dickens, Charles", "Once upon a time, it matters little", "THE END."),
    Book("Persuasion", "Jane Austen", 1817,
         "Persuasion", "Austen, Jane", "Sir Walter Elliot, of Kellynch Hall", "\nFinis"),
    Book("The Cruise of the Dazzler", "Jack London", 1902,
         "The Cruise of the Dazzler", "London, Jack", "They ran across the shining sand", END),
    Book("The Night-Born", "Jack London", 1913,
         "The Night-Born", "London, Jack", "It was in the old Alta-Inyo Club", END),
    Book("True Stories from History and Biography", "Nathaniel Hawthorne", 1851,
         "True Stories of History and Biography", "Hawthorne, Nathaniel",
         "Grandfather had been sitting in", "THE END."),
    Book("The Gods of Mars", "Edgar Rice Burroughs", 1913,
         "The Gods of Mars", "Burroughs, Edgar Rice", "As I stood upon the bluff before my cottage", END),
    Book("Dorothy's Double, Volume 1", "G. A. Henty", 1894,
         "Dorothy's Double. Volume 1", "Henty, G. A. (George Alfred)",
         "A dark night on the banks", "END OF THE FIRST"),
    Book("Alonzo Fitz, and Other Stories", "Mark Twain", 1882,
         "Alonzo Fitz, and Other Stories", "Twain, Mark", "It was well along in the forenoon", END),
    Book("Wait and Hope", "Horatio Alger, Jr.", 1877,
         "Wait and Hope; Or, A Plucky Boy's Luck", "Alger, Horatio, Jr.", "Five o'clock sounded from", END),
    Book("Nelson the Newsboy (completed by Edward Stratemeyer)", "Horatio Alger, Jr.", 1901,
         "Nelson the Newsboy; Or, Afloat in New York", "Alger, Horatio, Jr.",
         '"_Herald_, _Times_, _Tribune_!', "THE END."),
    Book("Tom Thatcher's Fortune", "Horatio Alger, Jr.", 1888,
         "Tom Thatcher's Fortune", "Alger, Horatio, Jr.", '"Is supper ready, mother?', "A. L. Burt's Catalogue"),
    Book("Digging for Gold", "Horatio Alger, Jr.", 1892,
         "Digging for Gold: A Story of California", "Alger, Horatio, Jr.",
         '"Mother, this is an important day', "THE END."),
    Book("Tom, the Bootblack", "Horatio Alger, Jr.", 1880,
         "Tom, The Bootblack; or, The Road to Success", "Alger, Horatio, Jr.",
         '"How do you feel this morning', "THE END."),
    Book("The Boy Scouts on Belgian Battlefields", "John Henry Goldfrap", 1915,
         "The Boy Scouts on Belgian Battlefields", "Wrenn, Charles L. (Charles Lewis)",
         '"Oh! how glad I am that part', "BOY SCOUT SERIES"),
    Book("The Party and Other Stories (translated by Constance Garnett)", "Anton Chekhov", 1917,
         "The Party and Other Stories", "Garnett, Constance", "AFTER the festive dinner", END),
    Book("Love and Other Stories (translated by Constance Garnett)", "Anton Chekhov", 1922,
         "Love and Other Stories", "Chekhov, Anton Pavlovich", '"THREE o\'clock in the morning.', END),
    Book("Behind a Mask", "Louisa May Alcott", 1866,
         "Behind a Mask; or, a Woman's Power", "Alcott, Louisa May", '"Has she come?"', END),
    Book("The Marne", "Edith Wharton", 1918,
         "The Marne: A Tale of the War", "Wharton, Edith", "Ever since the age of six", "THE END"),
    Book("A Budget of Christmas Tales", "Charles Dickens and others", 1895,
         "A Budget of Christmas Tales by Charles Dickens and Others", "Dickens, Charles",
         "THE CHRISTMAS BABE.\n", "***END OF"),
)  # fmt: skip
