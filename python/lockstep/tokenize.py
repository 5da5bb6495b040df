"""Text to token ids and back, with the checkpoint's own tokenizer.json.

No special tokens are added but those of the file's own post-processor; Qwen3's adds none.
"""

from __future__ import annotations

from pathlib import Path

from lockstep.errors import LockstepError


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
