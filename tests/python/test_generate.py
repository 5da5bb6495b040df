"""`lockstep generate`: the text is transformers' text, whole and as a stream, and it ends where it should."""

import json
import lzma
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import tokenizers
import torch
from checkpoints import edit_config, make_checkpoint
from programs import LOCKSTEP, QWEN3_TOKENIZER, TINY, lockstep
from safetensors.torch import load_file, save_file

PROMPTS = [
    "In the beginning God",
    "And God said,",
    "Paul, an apostle of Jesus Christ",
    "1",
    "\n\nThe LORD is my shepherd",
]


def generate(model: Path, *options: object, **kwargs) -> tuple[str, str]:
    """The text without its last line end, and what stands on stderr."""
    done = lockstep("generate", model, *options, **kwargs)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n")
    return done.stdout[:-1], done.stderr


def hash_of(stderr: str) -> str:
    return re.search(r"last logits ([0-9a-f]{16})\n", stderr)[1]


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.Tokenizer.from_file(str(TINY / "tokenizer.json"))


@pytest.fixture(scope="module")
def transformers_model():
    from transformers import Qwen3ForCausalLM

    return Qwen3ForCausalLM.from_pretrained(TINY, dtype=torch.float32)


@pytest.fixture
def model(tmp_path):
    """A copy of the bundled model that a test may change."""
    return Path(shutil.copytree(TINY, tmp_path / "model"))


# --- Against transformers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_that_of_transformers(tokenizer, transformers_model, prompt, penalty):
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    new = transformers_model.generate(
        ids, do_sample=False, max_new_tokens=200, repetition_penalty=penalty, attention_mask=torch.ones_like(ids)
    )[0, ids.shape[1] :].tolist()
    ended = new[-1] in (2000, 2002)
    text, stderr = generate(TINY, "--prompt", prompt, "--max-tokens", 200, "--repetition-penalty", penalty)
    assert text == tokenizer.decode(new[:-1] if ended else new, skip_special_tokens=False)
    assert len(new) > 50
    assert stderr.startswith("stopped: " + (f"end of text (token {new[-1]})" if ended else "max tokens (200)"))
    assert f"prefill: {ids.shape[1]} tokens" in stderr and f"decode: {len(new) - 1} tokens" in stderr


def test_bf16_and_fewer_layers(tokenizer):
    text, _ = generate(TINY, "--prompt", "And God said,", "--dtype", "bf16", "--num-layers", 2, "--max-tokens", 5)
    assert len(tokenizer.encode(text).ids) > 0
    assert text != generate(TINY, "--prompt", "And God said,", "--max-tokens", 5)[0]


# --- Prompts -------------------------------------------------------------------------------------------------------


def test_prompts_of_every_kind(tokenizer, tmp_path):
    prompt = "And the LORD said unto Moses,\nSpeak"
    text, stderr = generate(TINY, "--prompt", prompt, "--max-tokens", 3)
    for ending in ("", "\n", "\r\n"):
        (tmp_path / "prompt.txt").write_bytes((prompt + ending).encode())
        assert generate(TINY, "--prompt-file", tmp_path / "prompt.txt", "--max-tokens", 3)[0] == text
    ids = ",".join(map(str, tokenizer.encode(prompt).ids))
    again = generate(TINY, "--tokens", ids, "--max-tokens", 3)
    assert again[0] == text and hash_of(again[1]) == hash_of(stderr)


def test_special_tokens_in_the_prompt():
    as_text = generate(TINY, "--prompt", "a<|im_end|>", "--max-tokens", 1)[1]
    assert "prefill: 2 tokens" in as_text


@pytest.mark.parametrize("more", [(), ("--no-thinking",)])
def test_chat(more):
    prompt = " Who made heaven?\n"
    rendered = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    rendered += "<think>\n\n</think>\n\n" if more else ""
    _, chat = generate(TINY, "--chat", "--prompt", prompt, *more, "--max-tokens", 1)
    _, plain = generate(TINY, "--prompt", rendered, "--max-tokens", 1)
    assert hash_of(chat) == hash_of(plain)


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    """A random model with Qwen3's own tokenizer."""
    packed = QWEN3_TOKENIZER / "tokenizer.json.xz"
    if not packed.exists():
        pytest.skip(f"the real Qwen3 tokenizer is not there: {packed}")
    shape = {"vocab_size": 151936, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
    model = make_checkpoint(tmp_path_factory.mktemp("qwen3"), **shape)
    (model / "tokenizer.json").write_bytes(lzma.decompress(packed.read_bytes()))
    shutil.copy(QWEN3_TOKENIZER / "tokenizer_config.json", model)
    return model


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize(
    "prompt", ["Hello", "  two\nlines\n\n", "{{ x }} <|im_end|> é 漢字", "<tool_response>1</tool_response>"]
)
def test_chat_is_qwen3s_template(qwen3, prompt, thinking):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(qwen3)
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)
    ids = tokenizer.encode(text, add_special_tokens=False)
    options = () if thinking else ("--no-thinking",)
    _, chat = generate(qwen3, "--chat", "--prompt", prompt, *options, "--max-tokens", 1)
    _, tokens = generate(qwen3, "--tokens", ",".join(map(str, ids)), "--max-tokens", 1)
    assert f"prefill: {len(ids)} tokens" in chat and hash_of(chat) == hash_of(tokens)


# --- Where it ends -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole():
    return generate(TINY, "--prompt", PROMPTS[0], "--max-tokens", 60)[0]


@pytest.mark.parametrize(("begin", "end"), [(0, 1), (3, 4), (9, 40), (30, 37), (35, 38), (60, 100)])
def test_stop_strings_across_tokens(whole, begin, end):
    stop = whole[begin:end]
    options = ("--max-tokens", 60, "--stop", "never", "--stop", stop)
    text, stderr = generate(TINY, "--prompt", PROMPTS[0], *options)
    assert text == whole[: whole.index(stop)]
    assert stderr.startswith("stopped: stop string\n")


def test_a_stop_string_that_only_begins_is_printed(whole):
    assert generate(TINY, "--prompt", PROMPTS[0], "--max-tokens", 60, "--stop", whole[-5:] + "!")[0] == whole


def test_end_of_text(model, tokenizer, whole):
    ids = tokenizer.encode(whole).ids
    first = ids[3]
    assert ids.index(first) == 3
    expected = tokenizer.decode(ids[:3])
    for file, content in (
        ("generation_config.json", {"eos_token_id": [7777777, first]}),
        ("generation_config.json", {"eos_token_id": first}),
        ("generation_config.json", None),  # config.json's then
    ):
        (model / file).unlink()
        if content is None:
            edit_config(model, eos_token_id=first)
        else:
            (model / file).write_text(json.dumps(content))
        text, stderr = generate(model, "--prompt", PROMPTS[0])
        assert text == expected and f"end of text (token {first})" in stderr


def test_sampling_defaults_of_the_model_are_not_taken(model, whole):
    (model / "generation_config.json").write_text('{"do_sample": true, "temperature": 5.0, "top_k": 20}')
    assert generate(model, "--prompt", PROMPTS[0], "--max-tokens", 60)[0] == whole


def test_context_full(model, tokenizer, whole):
    ids = tokenizer.encode(PROMPTS[0]).ids
    edit_config(model, max_position_embeddings=len(ids) + 10)
    text, stderr = generate(model, "--prompt", PROMPTS[0], "--max-tokens", 10**15)
    assert text == generate(TINY, "--prompt", PROMPTS[0], "--max-tokens", 11)[0]  # the last one is not fed any more
    assert stderr.startswith(f"stopped: context full ({len(ids) + 10} tokens)\n")
    edit_config(model, max_position_embeddings=len(ids))
    assert f"context full ({len(ids)} tokens)" in generate(model, "--prompt", PROMPTS[0])[1]
    assert "max tokens (1)" in generate(model, "--prompt", PROMPTS[0], "--max-tokens", 1)[1]


# --- Sampling ------------------------------------------------------------------------------------------------------


def test_seeds():
    def text(*options):
        return generate(TINY, "--prompt", "And", "--temperature", 1, "--max-tokens", 20, *options)[0]

    assert text("--seed", 5) == text("--seed", 5)
    assert len({text("--seed", seed) for seed in range(4)}) == 4
    assert text() == text("--seed", 0)
    greedy = generate(TINY, "--prompt", "And", "--max-tokens", 20)[0]
    for certain in (("--top-k", 1), ("--top-p", 1e-9), ("--min-p", 1)):
        assert text("--seed", 3, *certain) == greedy


# --- The stream ----------------------------------------------------------------------------------------------------


def test_the_stream_is_whole_characters(tmp_path):
    """A model that says anything: bytes that are no characters, and ids that its tokenizer does not know."""
    model = make_checkpoint(tmp_path / "model", tokenizer=True, vocab_size=300)
    options = ("--tokens", "1,2,3", "--temperature", "100", "--max-tokens", "300")
    command = [LOCKSTEP, "generate", model, *options]
    whole = subprocess.run(command, capture_output=True, check=True).stdout.decode("utf-8")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as process:
        chunks = list(iter(lambda: process.stdout.read(65536), b""))
    assert len(chunks) > 1
    assert "".join(chunk.decode("utf-8") for chunk in chunks) == whole
    assert "\ufffd" in whole


def test_what_can_not_be_written():
    with open("/dev/full", "w") as full:
        command = [LOCKSTEP, "generate", TINY, "--prompt", "x"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2 and b"standard output: cannot be written: No space left" in done.stderr


# --- What is not there ---------------------------------------------------------------------------------------------


def test_logits_that_are_no_numbers(model):
    file = model / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    done = lockstep("generate", model, "--tokens", "1,2,3")
    assert done.returncode == 2
    assert "position 2: logits: expected numbers, found nan for token 0" in done.stderr
