"""The C++ tokenizer against the `tokenizers` package, id for id and byte for byte."""

import copy
import json
import lzma
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import LOCKSTEP, QWEN3_TOKENIZER, TINY
from tokenizer_texts import ASSIGNED, BROKEN, MARKS, WORDS, mixed_text, mixed_texts
from tokenizers import Tokenizer

PROGRAM = LOCKSTEP.parents[1] / "tests" / "tokenizer_program"


class Ours:
    """The C++ tokenizer in a process of its own."""

    def __init__(self, path: Path):
        self.process = subprocess.Popen([PROGRAM, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.vocab_size = int(self._answer())

    def close(self) -> None:
        self.process.stdin.close()
        assert self.process.wait(60) == 0
        self.process.stdout.close()

    def _answer(self) -> bytes:
        status, size = self.process.stdout.readline().split()
        payload = self.process.stdout.read(int(size))
        if status != b"ok":
            raise ValueError(payload.decode())
        return payload

    def ask(self, operation: str, payload: bytes) -> bytes:
        self.process.stdin.write(f"{operation} {len(payload)}\n".encode() + payload)
        self.process.stdin.flush()
        return self._answer()

    def encode(self, text: bytes) -> list[int]:
        return np.frombuffer(self.ask("encode", text), dtype=np.int32).tolist()

    def decode(self, ids: list[int], operation: str) -> bytes:
        return self.ask(operation, np.array(ids, dtype=np.int32).tobytes())


class Pair:
    """Both tokenizers, of the same file."""

    def __init__(self, path: Path):
        self.ours = Ours(path)
        self.theirs = Tokenizer.from_file(str(path))

    def check(self, text: bytes) -> list[int]:
        """Encodes and decodes; the ids."""
        expected = self.theirs.encode(text.decode("utf-8", errors="replace")).ids
        found = self.ours.encode(text)
        assert found == expected, text
        self.check_decode(expected)
        return expected

    def check_decode(self, ids: list[int]) -> None:
        for suffix, skip in (("", False), ("_skip", True)):
            expected = self.theirs.decode(ids, skip_special_tokens=skip).encode()
            assert self.ours.decode(ids, "decode" + suffix) == expected, ids
            assert self.ours.decode(ids, "stream" + suffix) == expected, ids


def qwen3_file(folder: Path) -> Path:
    packed = QWEN3_TOKENIZER / "tokenizer.json.xz"
    if not packed.is_file():
        pytest.skip(f"the real Qwen3 tokenizer is not there: {packed}")
    path = folder / "tokenizer.json"
    with lzma.open(packed) as source, path.open("wb") as out:
        shutil.copyfileobj(source, out)
    return path


@pytest.fixture(scope="module", params=["tiny", "qwen3"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    tiny = request.param == "tiny"
    path = TINY / "tokenizer.json" if tiny else qwen3_file(tmp_path_factory.mktemp("qwen3"))
    out = Pair(path)
    yield out
    out.ours.close()


def edited(folder: Path, edit: dict, **model: object) -> Path:
    """The bundled tokenizer with other top-level keys and other keys of its model."""
    content = json.loads((TINY / "tokenizer.json").read_text())
    content.update(edit)
    content["model"].update(model)
    path = folder / "edited.json"
    path.write_text(json.dumps(content))
    return path


def added(id: int, content: str, special: bool, normalized: bool) -> dict:
    flags = dict(single_word=False, lstrip=False, rstrip=False)
    return dict(id=id, content=content, special=special, normalized=normalized, **flags)


# --- Texts -----------------------------------------------------------------------------------------------------------


def test_mixed_texts(pair: Pair) -> None:
    texts = mixed_texts()
    assert sum(map(len, texts)) > 1_400_000
    for text in texts:
        pair.check(text)


def test_every_character_in_every_place(pair: Pair) -> None:
    """Letter, number, blank or symbol: what stands before and behind shows how a character is classed."""
    for template in ("a{}a", "!{} ", " {} {}!", "\n{}\n {}", "1{}2", "'{}t", "{}\u0301"):
        for begin in range(0, len(ASSIGNED), 2000):
            text = "\x01".join(template.replace("{}", c) for c in ASSIGNED[begin : begin + 2000])
            assert pair.ours.encode(text.encode()) == pair.theirs.encode(text).ids, (template, begin)


def test_golden(tmp_path: Path) -> None:
    """Ids that two other tokenizers agree on."""
    ours = Ours(qwen3_file(tmp_path))
    golden = json.loads((QWEN3_TOKENIZER / "golden.json").read_text())
    assert len(golden) >= 18
    for case in golden:
        assert ours.encode(case["text"].encode()) == case["ids"], case["text"]
    ours.close()


def alphabet() -> st.SearchStrategy[str]:
    fragments = [word for words in WORDS.values() for word in words]
    pieces = [
        st.sampled_from(fragments),
        st.sampled_from(ASSIGNED),
        st.sampled_from(MARKS),
        st.sampled_from(" \n\r\t'sS1a"),
    ]
    return st.lists(st.one_of(pieces), max_size=30).map("".join)


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=alphabet())
def test_any_text(pair: Pair, text: str) -> None:
    pair.check(text.encode())


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.one_of(st.binary(max_size=8), st.sampled_from(BROKEN), alphabet().map(str.encode)), max_size=6)
)
def test_any_bytes(pair: Pair, parts: list[bytes]) -> None:
    pair.check(b"".join(parts))


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_ids(pair: Pair, data: st.DataObject) -> None:
    """Ids in any order cut characters in two."""
    ids = st.one_of(st.integers(0, 300), st.integers(0, pair.ours.vocab_size - 1))
    pair.check_decode(data.draw(st.lists(ids, max_size=40)))


def test_every_id_alone_and_beside_half_a_character(pair: Pair) -> None:
    assert pair.ours.vocab_size == pair.theirs.get_vocab_size()
    order = list(range(pair.ours.vocab_size))
    pair.check_decode(order)
    random.Random(1).shuffle(order)
    pair.check_decode(order)


# --- Large texts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", ["", "x"])
def test_ten_megabytes_of_blanks(pair: Pair, tail: str) -> None:
    """The package itself gives up on such a text (its regex has a limit), but its BPE takes the word."""
    size = 10_000_000
    found = pair.ours.encode(b" " * size + tail.encode())
    words = ["Ġ" * size] if not tail else ["Ġ" * (size - 1), "Ġ" + tail]
    assert found == [token.id for word in words for token in pair.theirs.model.tokenize(word)]


def test_ten_megabytes_of_one_letter(pair: Pair) -> None:
    text = "a" * 10_000_000
    assert pair.ours.encode(text.encode()) == pair.theirs.encode(text).ids


def test_a_long_word_of_many_letters(pair: Pair) -> None:
    text = "".join(random.Random(2).choices("etaoinshrdlu", k=300_000))
    assert pair.ours.encode(text.encode()) == pair.theirs.encode(text).ids


def test_many_marks_on_one_letter(pair: Pair) -> None:
    text = "".join(random.Random(3).choices(MARKS, k=20_000))
    assert pair.ours.encode(f"a{text}b".encode()) == pair.theirs.encode(f"a{text}b").ids


# --- Other files of the family ---------------------------------------------------------------------------------------

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
OTHER_FILES = {
    "gpt2": ({"pre_tokenizer": BYTE_LEVEL}, {}),
    "no normalizer": ({"normalizer": None}, {}),
    "ignore_merges": ({}, {"ignore_merges": True}),
    "no post-processor": ({"post_processor": None}, {}),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_other_files(name: str, tmp_path: Path) -> None:
    edit, model = OTHER_FILES[name]
    pair = Pair(edited(tmp_path, edit, **model))
    for seed in range(200):
        pair.check(mixed_text(300, seed))
    pair.check(mixed_text(200_000, 1))
    pair.ours.close()


def test_merges_as_lines(tmp_path: Path) -> None:
    merges = json.loads((TINY / "tokenizer.json").read_text())["model"]["merges"]
    pair = Pair(edited(tmp_path, {}, merges=["#version: 0.2", *map(" ".join, merges)]))
    pair.check(mixed_text(100_000, 5))
    pair.ours.close()


def test_ignored_merges_and_repeated_ones(tmp_path: Path) -> None:
    """A word that no merge makes, and a pair whose later rank counts."""
    content = json.loads((TINY / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    free = len(vocab)
    new = {token: free + k for k, token in enumerate(["qx", "xz", "qxzq"])}
    for ignore in (False, True):
        out = copy.deepcopy(content)
        out["model"]["vocab"] = vocab | new
        out["model"]["merges"] += [["q", "x"], ["x", "z"], ["q", "x"]]
        out["model"]["ignore_merges"] = ignore
        out["added_tokens"] = []
        path = tmp_path / "merges.json"
        path.write_text(json.dumps(out))
        pair = Pair(path)
        ids = pair.check(b"qxz qxzq")
        assert pair.check(b"qxz")[1:] == [new["xz"]]
        assert pair.check(b"qxzq") == ([new["qxzq"]] if ignore else [vocab["q"], new["xz"], vocab["q"]]), ids
        pair.ours.close()


def test_added_tokens_of_all_sorts(tmp_path: Path) -> None:
    contents = [
        ("é", True),
        ("ée", True),
        ("e\u0301e!", False),
        ("<|im", False),
        ("<|im_start|>x", True),
        ("  ", False),
    ]
    contents += [("ab", True), ("abab", True), ("中a", False), ("Ġ\u0120x", True), ("th", False), ("the\nend", True)]
    content = json.loads((TINY / "tokenizer.json").read_text())
    tokens, free = list(content["added_tokens"]), len(content["model"]["vocab"]) + len(content["added_tokens"])
    for k, (text, normalized) in enumerate(contents):
        known = content["model"]["vocab"].get(text)
        tokens.append(added(free if known is None else known, text, special=k % 3 == 0, normalized=normalized))
        free += known is None
    pair = Pair(edited(tmp_path, {"added_tokens": tokens}))
    rng = random.Random(4)
    fragments = [text for text, _ in contents] + [
        "e",
        "\u0301",
        "é",
        "<|im_end|>",
        "a",
        "b",
        " ",
        "<|",
        "x",
        "中",
        "\n",
    ]
    for _ in range(3000):
        pair.check("".join(rng.choices(fragments, k=rng.randint(1, 12))).encode())
    pair.ours.close()


# --- Refusals --------------------------------------------------------------------------------------------------------


def test_unknown_ids(pair: Pair) -> None:
    for bad in (-1, pair.ours.vocab_size, 2**31 - 1, -(2**31)):
        for operation in ("decode", "stream"):
            with pytest.raises(ValueError, match=f"token {bad}: expected an id of the tokenizer"):
                pair.ours.decode([0, bad], operation)


def test_ids_that_the_package_would_renumber_are_refused(tmp_path: Path) -> None:
    tokens = json.loads((TINY / "tokenizer.json").read_text())["added_tokens"]
    path = edited(tmp_path, {"added_tokens": [*tokens, added(2010, "<gap>", special=True, normalized=False)]})
    assert Tokenizer.from_file(str(path)).token_to_id("<gap>") == 2003
    with pytest.raises(ValueError, match="<gap>.*expected id 2003, the next that is free, found 2010"):
        Ours(path)
