"""Texts for the tokenizer's tests: made of everything that has broken a tokenizer, the same on every run.

Only characters that Python's own Unicode tables know are used: the tables of ICU and of the `tokenizers` package are
newer, and all agree on these.
"""

import random
import unicodedata

ASSIGNED = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cn", "Cs", "Co")]
MARKS = [c for c in ASSIGNED if unicodedata.combining(c)]
DIGITS = [c for c in ASSIGNED if unicodedata.category(c)[0] == "N"]
BLANKS = [c for c in ASSIGNED if c.isspace() or c in "\u200b\u200c\u200d\u2060\ufeff\u180e"]
CONTROLS = [chr(c) for c in [*range(0x20), *range(0x7F, 0xA0), 0xAD, 0x200E, 0x202E, 0x2066]]
DECOMPOSED = [c for c in ASSIGNED if unicodedata.normalize("NFC", c) != c or unicodedata.decomposition(c)]

WORDS = {
    "english": [
        "the",
        "quick",
        "brown",
        "fox",
        "it's",
        "don't",
        "we'LL",
        "THEY'RE",
        "I'm",
        "I'd",
        "you've",
        "'tis",
        "o'clock",
        "naïve",
        "café",
    ],
    "code": [
        "def f(x):\n    return x+1\n",
        "\tif (a[i]!=b){\r\n",
        "}\r\n\r\n",
        "// ---",
        "0x1F",
        "::",
        "->",
        "/* */",
        "\\n",
    ],
    "chinese": ["山东最高的山是？", "你好，世界。", "人工智能", "１２３", "「引用」", "\u3000", "龍龘", "々〆ヶ"],
    "arabic": ["السَّلَامُ", "عَلَيْكُمْ", "١٢٣٤", "لا", "\u200fمرحبا", "كتاب،", "ﷺ"],
    "hindi": ["नमस्ते", "हिन्दी", "क्षत्रिय", "१२३", "क़", "।", "श्री"],
    "others": [
        "한국어",
        "\u1112\u1161\u11ab",
        "日本語テキスト",
        "ก็ขอบคุณ",
        "Ελληνικά",
        "русский",
        "עִבְרִית",
        "ᏣᎳᎩ",
        "Å",
        "ﬁ",
        "ſ",
        "'ſ",
        "K",
    ],
    "emoji": ["😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "👍🏽", "☺️", "1️⃣", "❤", "🧑🏿‍🚀"],
    "special": [
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<|im_",
        "<think>",
        "</think>",
        "<tool_call>",
        "<<|im_end|>>",
        "|>",
    ],
}
BROKEN = [
    b"\xff",
    b"\xc3",
    b"\xe2\x82",
    b"\xed\xa0\x80",
    b"\xf0\x9f\x98",
    b"\xf4\x90\x80\x80",
    b"\xc0\xaf",
    b"\x80\x80",
    b"\xf8\x88",
]


def _piece(rng: random.Random) -> bytes:
    def some(characters: list[str], most: int = 6) -> str:
        return "".join(rng.choices(characters, k=rng.randint(1, most)))

    kind = rng.randrange(12)
    if kind < 5:
        return (
            (" " if rng.random() < 0.7 else "")
            .join(rng.choices(WORDS[rng.choice(list(WORDS))], k=rng.randint(1, 8)))
            .encode()
        )
    if kind == 5:
        return (rng.choice("aeioucnsAEIOU한क") + some(MARKS)).encode()
    if kind == 6:
        return some(DIGITS).encode()
    if kind == 7:
        return some(BLANKS + ["\n", "\r\n", " ", "  "] * 5).encode()
    if kind == 8:
        return some(CONTROLS, 3).encode()
    if kind == 9:
        return some(DECOMPOSED).encode()
    if kind == 10:
        return rng.choice(BROKEN)
    return some(ASSIGNED).encode()


def mixed_text(size: int, seed: int) -> bytes:
    """At least `size` bytes of everything, UTF-8 but for some places."""
    rng = random.Random(seed)
    out = bytearray()
    while len(out) < size:
        out += _piece(rng)
        out += rng.choice([b" ", b" ", b"", b"\n", b"'s ", b"."])
    return bytes(out)


def mixed_texts() -> list[bytes]:
    """1.5 MB: many short texts, some of middle length and a long one."""
    short = [mixed_text(1 + seed % 300, seed) for seed in range(2000)]
    return short + [mixed_text(20_000, seed) for seed in range(2000, 2010)] + [mixed_text(1_000_000, 2010)]
