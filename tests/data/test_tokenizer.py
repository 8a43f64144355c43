import base64
import functools
import gzip
import itertools
import json
import random
import re
import shutil

import numpy as np
import pytest
import sentencepiece
import tiktoken

from scaling.data import books, tokenizer
from scaling.data.tokenizer_training import _sample, reduce_tokenizer, train_tokenizer
from tests.shared import SHARED, needs_shared

TEXTS = [
    "",
    " ",
    "  two spaces,  and \t tabs \r\n\n\nthree newlines\n",
    " starts and ends with space ",
    "Zwölf naïve façades, 漢字かな, русский, العربية, 😀👩‍👩‍👧 e\u0301",
    "<|endoftext|> is text, so are <0x41>, <unk>, <s> and ▁▁ U+2581▁",
    "def f(x):\n    return x ** 2  # 12345 67.89\n",
    "\x00\x01\x7f\ufeff\ufffd",
]


def records(path):
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def write_ranks(path, merges):
    """A small ranks file: the bytes in GPT-2's order, then merges."""
    order = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    order += [b for b in range(256) if b not in order]
    tokens = [bytes([b]) for b in order] + merges
    path.write_text("".join(f"{base64.b64encode(t).decode()} {i}\n" for i, t in enumerate(tokens)))
    return tokens


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    write_ranks(folder / "small.tiktoken", [b"th", b"the", b" the", b"\n\n"])
    (folder / "text.txt").write_text("the cat sat on the mat\n\nand the dog 1234 ran\n" * 50)
    trained = train_tokenizer(str(folder / "text.txt"), 300, folder / "trained.model")
    return [tokenizer.load(name) for name in ("bytes", "books", str(folder / "small.tiktoken"), str(trained))]


def test_decode_inverts_encode_and_no_text_makes_end_of_text(tokenizers):
    rng = random.Random(0)
    alphabet = "ab \n\t▁é漢😀<|>\x00'"
    texts = TEXTS + ["".join(rng.choices(alphabet, k=rng.randrange(40))) for _ in range(200)]
    for words in tokenizers:
        for text, ids in zip(texts, words.encode_batch(texts), strict=True):
            assert words.decode(ids) == text, words.name
            assert ids.dtype == np.int32
            assert not np.any(ids == words.eot)
            assert np.all((ids >= 0) & (ids < words.vocab_size))
            np.testing.assert_array_equal(ids, words.encode(text))


def test_a_stream_is_the_texts_with_their_ends(tokenizers):
    rng = random.Random(1)
    plain = [text for text in TEXTS if "<|endoftext|>" not in text] + ["the<|endoftext|", ">x", "\n\n", "a  "]
    long = " " * tokenizer._LONG_RUN
    batches = [rng.choices(plain, k=rng.randrange(1, 9)) for _ in range(200)]
    batches += [[], plain, TEXTS, ["<|endoftext|>"], ["<|endof", "text|>"], ["a" + long, long], [long[1:], " b", long]]
    for words in tokenizers:
        for texts in batches:
            expected = [i for text in texts for i in [*words.encode(text), words.eot]]
            found = words.encode_stream(texts)
            assert found.dtype == np.int32 and found.tolist() == expected, (words.name, texts)


@needs_shared("data/tokenizer/r50k_base.tiktoken")
@needs_shared("data/c4/c4_en_sample.jsonl.gz")
def test_a_stream_of_real_texts_is_that_of_tiktoken():
    words = tokenizer.load(str(SHARED / "data/tokenizer/r50k_base.tiktoken"))
    texts = [record["text"] for record in records(SHARED / "data/c4/c4_en_sample.jsonl.gz")]
    expected = [i for text in texts for i in [*words._encoding.encode_ordinary(text), 50256]]
    assert words.encode_stream(texts).tolist() == expected
    assert words.encode("half \ud83d of a pair").tolist() == words._encoding.encode_ordinary("half \ud83d of a pair")
    assert words.encode_stream(["\ud83d", "b"]).tolist() == [*words.encode("\ud83d"), 50256, 65, 50256]


def test_end_of_text_decodes_to_its_name(tokenizers):
    for words in tokenizers:
        ids = [words.eot, *words.encode("a b"), words.eot, *words.encode(" c")]
        assert words.decode(ids) == "<|endoftext|>a b<|endoftext|> c"
        assert words.decode(np.array([], np.int32)) == ""


CHINESE = (
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后多"
)
TRAINED_ON = {
    "dna": ("ACGT", 80, "\n"),
    "chinese": (CHINESE, 30, "。\n"),
    "word list": ("abcdefghij", 6, "\n"),
    "tabs": ("abcdefghij", 6, "\t"),
    "carriage returns": ("abcdefghij", 6, "\r\n"),
    "one space": ("abcdefghij", 20_000, " "),
    "the trainer's reserved characters": ("abcdefghij", 6, "\u2581\u2585\u2047"),
}


@pytest.mark.parametrize("kind", TRAINED_ON)
def test_a_trained_tokenizer_is_lossless_whatever_it_was_trained_on(tmp_path, kind, caplog):
    letters, length, between = TRAINED_ON[kind]
    rng = random.Random(0)
    words = ["".join(rng.choices(letters, k=length)) for _ in range(2 if length > 1000 else 300)]
    (tmp_path / "a.txt").write_text(between.join(words), newline="")
    made = tokenizer.load(str(train_tokenizer(str(tmp_path / "a.txt"), 350, tmp_path / "a.model")))
    assert not caplog.text
    alphabet = "aA的 \t\n\r\x00\x1f\x7f\x85\u2028\u2581\u2585\u2047\ufeff\ufffd\U0001f600<>0e\u0301"
    for text in [*TEXTS, "a b", "\u2581", *("".join(rng.choices(alphabet, k=rng.randrange(30))) for _ in range(300))]:
        assert made.decode(made.encode(text)) == text


def test_a_sentencepiece_model_without_a_space_says_so(tmp_path, caplog):
    """As trained before on text without spaces, or elsewhere."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ACGTTGCA", "GATTACA", "CCGGTTAA"] * 20),
        model_prefix=str(tmp_path / "dna"),
        model_type="bpe",
        vocab_size=268,
        byte_fallback=True,
        add_dummy_prefix=False,
        minloglevel=2,
    )
    words = tokenizer.load(str(tmp_path / "dna.model"))
    assert words.decode(words.encode("A C")) == "A\u2581C"
    assert "dna.model has no piece for a space" in caplog.text


@needs_shared("data/tokenizer/r50k_base.tiktoken")
@pytest.mark.parametrize("white", [" ", "\n", "\t", " \n", "\u3000", "\r\n\t "])
def test_long_white_space_gives_the_ids_of_tiktoken(white):
    """Where tiktoken can; of a million characters it cannot."""
    words = tokenizer.load(str(SHARED / "data/tokenizer/r50k_base.tiktoken"))
    for count in (tokenizer._LONG_RUN - 1, tokenizer._LONG_RUN, 2 * tokenizer._LONG_RUN + 7):
        run = (white * count)[:count]
        for text in (run, f"{run}a", f"a{run}", f"x y{run}12{run} z", f"{run} é", f"\x1f{run}\x1f", f"{run}'s{run}"):
            assert words.encode(text).tolist() == words._encoding.encode_ordinary(text), (count, text[:3], text[-3:])
    text = white * 1_000_000 + "a b"
    assert words.decode(words.encode(text)) == text


def test_sizes_and_fingerprints(tokenizers):
    assert [(words.vocab_size, words.eot) for words in tokenizers] == [(257, 256), (4096, 1), (261, 260), (300, 1)]
    assert len({words.fingerprint for words in tokenizers}) == len(tokenizers)
    assert tokenizer.load("books").fingerprint == tokenizers[1].fingerprint


def test_the_embedded_tokenizer_is_worth_its_vocabulary():
    text = records(books.VALIDATION)[0]["text"]
    assert len(text) / tokenizer.load("books").encode(text).size > 3.4


@needs_shared("data/tokenizer/gpt2_vocab.bpe")
def test_gpt2_files_give_gpt2_ids(tmp_path):
    source = SHARED / "data/tokenizer"
    for bpe, vocabulary in (("vocab.bpe", "encoder.json"), ("merges.txt", "vocab.json")):
        (tmp_path / bpe).mkdir()
        shutil.copy(source / "gpt2_vocab.bpe", tmp_path / bpe / bpe)
        shutil.copy(source / "gpt2_encoder.json", tmp_path / bpe / vocabulary)
    names = [source / "r50k_base.tiktoken", tmp_path / "vocab.bpe", tmp_path / "merges.txt"]
    made = [tokenizer.load(str(name)) for name in names]
    assert len({words.fingerprint for words in made}) == 1
    for words in made:
        assert (words.vocab_size, words.eot) == (50257, 50256)
        assert words.encode("Hello world").tolist() == [15496, 995]
        assert words.encode(" Hello  world!\n\n").tolist() == [18435, 220, 995, 0, 628]
        assert words.encode("<|endoftext|>").tolist() == [27, 91, 437, 1659, 5239, 91, 29]
        assert words.decode([50256]) == "<|endoftext|>"
    text = "".join(record["text"] for record in records(books.VALIDATION)[:20]) + "".join(TEXTS)
    np.testing.assert_array_equal(made[0].encode(text), made[1].encode(text))
    assert made[1].decode(made[1].encode(text)) == text


@needs_shared("data/tokenizer/gpt2_vocab.bpe")
def test_gpt2_agrees_with_the_slow_published_algorithm():
    """Words by the pattern and merges one by one as in encoder.py (github.com/openai/gpt-2), on real text."""
    vocabulary = json.loads((SHARED / "data/tokenizer/gpt2_encoder.json").read_text())
    lines = (SHARED / "data/tokenizer/gpt2_vocab.bpe").read_text().splitlines()[1:]
    merge_rank = {tuple(line.split()): i for i, line in enumerate(lines)}
    character_of = {byte: c for c, byte in tokenizer.byte_of_character().items()}

    def slow(word):
        parts = [character_of[b] for b in word.encode()]
        while len(parts) > 1:
            pairs = [(merge_rank.get(pair, 1 << 30), i) for i, pair in enumerate(itertools.pairwise(parts))]
            rank, i = min(pairs)
            if rank == 1 << 30:
                break
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return [vocabulary[part] for part in parts]

    # Python's re has no \p{L} and \p{N}: letters and digits are spelled otherwise.
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+"
    text = records(books.VALIDATION)[3]["text"] + "  naïve 漢字 12345 'tis  we're\n\n\n\t x_y 😀 \n"
    expected = [i for word in re.findall(pattern, text) for i in slow(word)]
    words = tokenizer.load(str(SHARED / "data/tokenizer/r50k_base.tiktoken"))
    assert words.encode(text).tolist() == expected


def test_gpt2_without_network_names_the_offline_way(monkeypatch):
    def refuse(name):
        raise ConnectionError("no route")

    monkeypatch.setattr(tiktoken, "get_encoding", refuse)
    with pytest.raises(OSError, match=r"offline.*config"):
        tokenizer.load("gpt2")


def test_a_byte_order_mark_before_ranks(tmp_path):
    write_ranks(tmp_path / "a.tiktoken", [b"th"])
    marked = tmp_path / "b.tiktoken"
    marked.write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.tiktoken").read_bytes())
    assert tokenizer.load(str(marked)).fingerprint == tokenizer.load(str(tmp_path / "a.tiktoken")).fingerprint


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("gtp2", None, FileNotFoundError, "none of gpt2, bytes, books"),
        ("a.model", b"not a model", ValueError, "not a sentencepiece model"),
        ("a.txt", b"x", ValueError, ".tiktoken, .model, .json or .reduced"),
        ("a.tiktoken", b"IQ== 0\n??? 1\n", ValueError, "a.tiktoken:2: not a line"),
        ("a.tiktoken", b"IQ== 0\n", ValueError, "byte 0x00"),
    ],
)
def test_bad_tokenizers(tmp_path, name, content, error, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error) as caught:
        tokenizer.load(str(tmp_path / name))
    assert message in str(caught.value)


@pytest.mark.parametrize("suffix", ["model", "json"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bos_token": 5}, "tokenizer_config.json: bos_token must be a token's text, got 5"),
        ({"bos_token": ["a"]}, "tokenizer_config.json: bos_token must be a token's text"),
        ({"bos_token": "<none>"}, 'tokenizer_config.json says bos_token="<none>", which is no token'),
    ],
)
def test_bad_settings_beside_a_tokenizer(tmp_path, suffix, settings, message):
    from scaling.interop import tokenizer_json

    path = tmp_path / f"tokenizer.{suffix}"
    if suffix == "json":
        pytest.importorskip("tokenizers", reason="the package tokenizers (the extra hf) is not installed")
        path.write_bytes(tokenizer_json.files(tokenizer.load("bytes"))["tokenizer.json"])
    else:
        shutil.copy(books.TOKENIZER, path)
    config = tmp_path / "tokenizer_config.json"
    wrong = [(settings, message)]
    wrong += [({"eos_token": ["a"]}, "eos_token must be a token's text")] if suffix == "json" else []
    wrong += [({"add_bos_token": "nope"}, "add_bos_token must be true or false")] if suffix == "model" else []
    for values, words in wrong:
        config.write_text(json.dumps(values))
        with pytest.raises(ValueError, match=re.escape(words)):
            tokenizer.load(str(path))


def test_bad_gpt2_directories(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither vocab"):
        tokenizer.load(str(tmp_path))
    characters = tokenizer.byte_of_character()
    vocabulary = {c: i for i, c in enumerate(characters)} | {"ab": 256, "abc": 257, "<|endoftext|>": 258}
    (tmp_path / "encoder.json").write_text(json.dumps(vocabulary))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\na b\nab c\n")
    assert tokenizer.load(str(tmp_path)).encode("abcab").tolist() == [257, 256]
    (tmp_path / "encoder.json").write_text("\ufeff" + json.dumps(vocabulary))
    (tmp_path / "vocab.bpe").write_text("\ufeff#version: 0.2\na b\nab c\n")
    assert tokenizer.load(str(tmp_path)).encode("abcab").tolist() == [257, 256]
    (tmp_path / "vocab.bpe").write_bytes(b"#version: 0.2\na \xff\n")
    with pytest.raises(ValueError, match=r"vocab\.bpe: .*UTF-8"):
        tokenizer.load(str(tmp_path))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nab c\na b\n")
    with pytest.raises(ValueError, match="merge 2 "):
        tokenizer.load(str(tmp_path))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\na b\n")
    with pytest.raises(ValueError, match=r"1 merges.* 258 tokens"):
        tokenizer.load(str(tmp_path))
    for content in ("[]", '{"a": null}', '{"a": "x"}', '{"a": %s}' % ("9" * 5000), "[" * 100_000):
        (tmp_path / "encoder.json").write_text(content)
        with pytest.raises(ValueError, match=r"encoder\.json"):
            tokenizer.load(str(tmp_path))


def test_training_is_deterministic_and_never_overwrites(tmp_path):
    (tmp_path / "a.txt").write_text("one two three\n\nfour five six seven eight\n" * 20)
    first = train_tokenizer(str(tmp_path / "*.txt"), 300, tmp_path / "new/a.model")
    second = train_tokenizer(str(tmp_path / "*.txt"), 300, tmp_path / "b.model")
    assert first.read_bytes() == second.read_bytes()
    with pytest.raises(FileExistsError, match="not overwritten"):
        train_tokenizer(str(tmp_path / "*.txt"), 300, second)
    for size, words in ((5000, r"5000.*at most"), (10, r"at least"), (0, "between"), (10**20, "between")):
        with pytest.raises(ValueError, match=words) as caught:
            train_tokenizer(str(tmp_path / "*.txt"), size, tmp_path / "c.model")
        assert not re.search("INTERNAL|src/|--|required_chars", str(caught.value))
    assert not (tmp_path / "c.model").exists()


def test_large_input_is_sampled_by_content():
    texts = [f"document {i} " + "x" * 100 for i in range(1000)]
    kept = _sample(iter(texts), 20_000)
    assert 5_000 < sum(map(len, kept)) <= 20_000
    assert sorted(kept) == sorted(_sample(iter(texts[::-1]), 20_000))


@pytest.mark.slow
@needs_shared("data/books/gutenberg_books.jsonl.gz")
def test_the_embedded_corpus_is_what_its_script_builds(tmp_path):
    from scaling.data.books import build

    build.build(SHARED / "data/books/gutenberg_books.jsonl.gz", tmp_path)
    for path in (books.TRAIN, books.VALIDATION):  # zlib versions compress differently
        assert gzip.decompress((tmp_path / path.name).read_bytes()) == gzip.decompress(path.read_bytes())
    assert (tmp_path / "tokenizer.model").read_bytes() == books.TOKENIZER.read_bytes()


def test_the_embedded_corpus_is_clean():
    train, held = records(books.TRAIN), records(books.VALIDATION)
    size = [sum(len(record["text"]) for record in part) for part in (train, held)]
    assert 0.03 < size[1] / sum(size) < 0.07
    assert {record["title"] for record in train} == {record["title"] for record in held}
    paragraphs = [{p for r in part for p in r["text"].split("\n\n") if len(p) > 200} for part in (train, held)]
    assert not paragraphs[0] & paragraphs[1]
    for record in train + held:
        text = record["text"]
        for mark in (
            "Gutenberg",
            " etext",
            " eBook",
            "Transcriber",
            "[",
            "]",
            "_",
            "*",
            "\r",
            "\n\n\n",
            "  ",
            "“",
            "—",
            "http",
        ):
            assert mark not in text, (record["title"], mark)
        assert text == text.strip()


def test_the_embedded_files_stay_small():
    assert sum(path.stat().st_size for path in (books.TRAIN, books.VALIDATION, books.TOKENIZER)) < 3_000_000


def test_a_part_of_a_vocabulary(tmp_path):
    """The most frequent tokens keep their meaning, all others are one, and the file holds the whole tokenizer."""
    (tmp_path / "a.txt").write_text("the cat and the dog and the cat " * 20 + "zebra quagmire, 1789!")
    base = tokenizer.load("books+chat")
    path, share = reduce_tokenizer("books+chat", str(tmp_path / "a.txt"), 18, tmp_path / "new/a.reduced")
    part = tokenizer.load(str(path))
    assert part.vocab_size == 18 and 0.9 < share < 1
    frequent, rare = part.encode("the cat and the dog"), part.encode("the xylophone")
    assert part.decode(frequent) == "the cat and the dog" and part.rare not in frequent
    assert part.decode(rare).startswith("the") and part.decode(rare).count("\ufffd") == (rare == part.rare).sum() > 0
    assert part.decode([part.rare]) == "\ufffd"
    np.testing.assert_array_equal(part.kept[frequent], base.encode("the cat and the dog"))
    # What begins, ends and lays out texts is there, whether the texts have it or not.
    assert part.eot < part.rare and part.kept[part.eot] == base.eot
    assert {name: part.kept[i] for name, i in part.controls.items()} == base.controls
    assert (part.chat_template, [*part.kept[list(part.start)]]) == (base.chat_template, [*base.start])
    np.testing.assert_array_equal(part.encode_stream(["the", "cat"]), part.places[base.encode_stream(["the", "cat"])])

    # A copy needs no other file, and is the same tokenizer.
    suffix, content = part.file()
    (tmp_path / f"copy{suffix}").write_bytes(content)
    assert tokenizer.load(str(tmp_path / f"copy{suffix}")).fingerprint == part.fingerprint
    trained = train_tokenizer(str(tmp_path / "a.txt"), 290, tmp_path / "own.model")
    own, _ = reduce_tokenizer(str(trained), str(tmp_path / "a.txt"), 12, tmp_path / "own.reduced")
    before = tokenizer.load(str(own))
    trained.unlink()
    again = tokenizer.load(str(own))
    assert again.fingerprint == before.fingerprint != part.fingerprint
    assert again.base.fingerprint == before.base.fingerprint


def test_a_part_that_cannot_be_is_refused(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("abc")
    make = functools.partial(reduce_tokenizer, "bytes", str(text))
    for size in (2, 258):
        with pytest.raises(ValueError, match=rf"of {size} tokens .* must lie between 3 .* and 257"):
            make(size, tmp_path / "a.reduced")
    with pytest.raises(ValueError, match=r"a name that ends in \.reduced"):
        make(5, tmp_path / "a.model")
    made, _ = make(5, tmp_path / "a.reduced")
    with pytest.raises(FileExistsError, match="is not overwritten"):
        make(5, made)
    text.write_text("")
    with pytest.raises(ValueError, match="is empty"):
        make(5, tmp_path / "b.reduced")
    good = json.loads(made.read_text())
    for change, message in (
        ({"ids": [97, 98, 256, 255]}, r"must ascend within \[0, 257\)"),
        ({"ids": [97, 98, 257]}, r"must ascend within \[0, 257\)"),
        ({"ids": [97, 98]}, "must keep the control token 256 of bytes"),
        ({"ids": [97, 98, 2**32 + 99, 2**32 + 256]}, r"must ascend within \[0, 257\)"),
        ({"tokenizer": {"name": str(tmp_path / "c.reduced")}}, "not what `scaling tokenizer reduce` writes"),
        ({"tokenizer": {"name": "y.model", "files": {"x.model": ""}}}, "not what `scaling tokenizer reduce` writes"),
        ({"tokenizer": {"name": "..", "files": {"..": ""}}}, "not what `scaling tokenizer reduce` writes"),
        ({"ids": ["a"]}, "not what `scaling tokenizer reduce` writes"),
        ({"tokenizer": {"name": "x.model", "files": {"x.model": "?"}}}, "not what `scaling tokenizer reduce` writes"),
        ({"tokenizer": {"name": "x.model", "files": {"../x.model": ""}}}, "not what `scaling tokenizer reduce` writes"),
    ):
        (tmp_path / "c.reduced").write_text(json.dumps(good | change))
        with pytest.raises(ValueError, match=message):
            tokenizer.load(str(tmp_path / "c.reduced"))
