"""Text to token ids and back, with the checkpoint's own tokenizer.json.

    python -m lockstep.tokenize MODEL --input "Hello" --input "World"     prints [[ids], [ids]]
    python -m lockstep.tokenize MODEL --input-file prompts.txt            one prompt a line
    echo '[[9707]]' | python -m lockstep.tokenize MODEL --decode-ids      prints ["Hello"]

No special tokens are added but those of the file's own post-processor; Qwen3's adds none.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lockstep.errors import LockstepError

MAX_TOKEN_ID = (1 << 31) - 1


class Tokenizer:
    def __init__(self, model: str | Path):
        try:
            import tokenizers  # only here, so that runs on token ids do without the package
        except ImportError as error:
            raise LockstepError(
                f"tokenizers: expected the Python package, found {error}; pip install tokenizers, or "
                "pass token ids with --tokens"
            ) from error
        path = Path(model) / "tokenizer.json"
        if not path.is_file():
            raise LockstepError(
                f"{path}: expected the model's tokenizer, found nothing; "
                "copy tokenizer.json there, or pass token ids with --tokens"
            )
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package throws nothing more special
            raise LockstepError(
                f"{path}: expected a Hugging Face tokenizer, found {' '.join(str(error).split())}; download it again"
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str, name: str = "text") -> list[int]:
        """`name` says in an error where the text came from."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:  # bytes of the command line that Python could not decode
            raise LockstepError(
                f"{name}: expected UTF-8, found {text[error.start]!r} at character {error.start}; convert the text"
            ) from error
        return self._tokenizer.encode(text).ids

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


def read_prompts(path: str | Path) -> list[str]:
    """One prompt a line. Lines end in \\n or \\r\\n alone: other Unicode line ends belong to the prompt."""
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise LockstepError(f"{path}: expected a file of prompts, found {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise LockstepError(
            f"{path}: expected UTF-8, found byte 0x{error.object[error.start]:02x} at offset "
            f"{error.start}; convert the file"
        ) from error
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if lines[-1] == "":  # after the last line's end
        lines.pop()
    if not lines:
        raise LockstepError(f"{path}: expected one prompt a line, found an empty file")
    return lines


def _read_ids(text: bytes) -> list[list[int]]:
    try:
        sequences = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LockstepError(f"standard input: expected JSON [[ids], ...], found {error}") from error
    if not isinstance(sequences, list) or not all(_is_ids(ids) for ids in sequences):
        raise LockstepError("standard input: expected JSON [[ids], ...], found something else")
    return sequences


def _is_ids(ids: Any) -> bool:
    return isinstance(ids, list) and all(type(i) is int and 0 <= i <= MAX_TOKEN_ID for i in ids)


def run(arguments: argparse.Namespace) -> list[Any]:
    tokenizer = Tokenizer(arguments.model)
    if arguments.decode_ids:
        return [tokenizer.decode(ids) for ids in _read_ids(sys.stdin.buffer.read())]
    if arguments.input_file is not None:
        texts = read_prompts(arguments.input_file)
        return [tokenizer.encode(text, f"{arguments.input_file}:{i}") for i, text in enumerate(texts, 1)]
    return [tokenizer.encode(text, "--input") for text in arguments.input]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lockstep.tokenize",
        allow_abbrev=False,
        description="Text to token ids and back, with the model's tokenizer.json.",
    )
    parser.add_argument("model", metavar="MODEL", help="directory of a Hugging Face checkpoint")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--input", action="append", metavar="TEXT", help="a prompt; may be given several times")
    what.add_argument("--input-file", metavar="FILE", help="one prompt a line")
    what.add_argument("--decode-ids", action="store_true", help="read [[ids], ...] on standard input, print texts")
    arguments = parser.parse_args(argv)
    try:
        print(json.dumps(run(arguments)))
    except LockstepError as error:
        print(f"lockstep tokenize: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
