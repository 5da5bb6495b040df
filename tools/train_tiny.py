"""Train the bundled model: a small but real Qwen3, on the King James Bible.

Why: a model with random weights attends nearly uniformly, and that hides wrong rotary embeddings and wrong masks. A
trained one does not, and one of a few megabytes can live in the repository. Its shape is chosen so that common
shortcuts of an engine fail: head_dim is not hidden / heads, three query heads share one key/value head, the output
matrix is the embedding, the vocabulary has more rows than the tokenizer has ids.

On what: the text in Debian's package `bible-kjv-text` (public domain), read through the program `bible`. A document is
a chapter, one verse a line; every 20th chapter is held out for the validation loss.

How long: less than a second a step on one idle core with AVX512-BF16, so about half an hour; docs/model.md has the
measured times and losses. Weights and sums are f32; the products are bf16 (autocast), which is faster on such a core.

How to repeat:

    apt-get install bible-kjv bible-kjv-text
    pip install torch transformers tokenizers safetensors
    python tools/train_tiny.py

The seed fixes the initial weights and the order of the data. Rounding depends on the CPU and the versions, so expect
losses like those in docs/model.md, not the same bits.
"""

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

ROOT = Path(__file__).resolve().parent.parent

# The pre-tokenizer's pattern in Qwen3's tokenizer.json.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
BPE_SIZE = 2000  # ids 0..1999; the specials follow, as in Qwen3
VOCAB_ROWS = 2048  # rows 2003..2047 have no token, as Qwen3's last 267 have none

TOKENS_PER_STEP = 4096
LENGTHS = (256, 512, 256, 512, 256, 512, 256, 2048)  # sequence length of step i: LENGTHS[i % 8]
EVAL_LENGTH = 512
# (step, share of the peak learning rate): warm up, hold, fall, fall faster; then a short second round in which half of
# the windows open a book, so that greedy decoding follows a few texts it nearly knows by heart.
LR_KNOTS = ((-1, 0.0), (49, 1.0), (900, 1.0), (1400, 6 / 11), (1650, 0.0), (1670, 0.25), (1850, 0.0))
OPENINGS_FROM = 1650

PROMPTS = ["In the beginning God", "And the LORD said unto Moses,"]


# ---- text and tokenizer ----------------------------------------------------------------------------------------------


def read_chapters() -> dict[str, str]:
    """The whole text: "Ge1" -> the chapter, one line a verse, without verse numbers."""
    if shutil.which("bible") is None:
        sys.exit("train_tiny: no program 'bible' here, which prints the text to train on.\n"
                 "On Debian or Ubuntu: apt-get install bible-kjv bible-kjv-text")  # fmt: skip
    done = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    chapters: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        verse = re.fullmatch(r"(\w+):\d+ (.+)", line)  # "Ge1:3 And God said, Let there be light: ..."
        if verse:
            chapters.setdefault(verse[1], []).append(verse[2].strip())
    if (len(chapters), sum(map(len, chapters.values()))) != (1189, 31102):
        sys.exit(f"train_tiny: 'bible -f gen1:1-rev22:21' printed {len(chapters)} chapters, expected 1189 chapters, "
                 f"31102 verses; is the package bible-kjv-text installed?\n{done.stderr}")  # fmt: skip
    return {name: "\n".join(verses) + "\n" for name, verses in chapters.items()}


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE, built like Qwen3's tokenizer.json, only with fewer merges."""
    tok = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix=""))
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
    ])  # fmt: skip
    tok.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()  # all 256 bytes: no text is unknown
    tok.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=BPE_SIZE, initial_alphabet=alphabet, show_progress=False,
        continuing_subword_prefix="", end_of_word_suffix="",
    ))  # fmt: skip
    tok.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in SPECIALS])
    return tok


def encode(tok: Tokenizer, chapters: list[str]) -> torch.Tensor:
    """One stream of ids, each chapter closed by <|endoftext|>."""
    end = tok.token_to_id(SPECIALS[0])
    return torch.tensor([i for c in tok.encode_batch(chapters) for i in [*c.ids, end]])


# ---- model and training ----------------------------------------------------------------------------------------------


def make_config(tok: Tokenizer) -> Qwen3Config:
    end = tok.token_to_id(SPECIALS[0])
    return Qwen3Config(
        vocab_size=VOCAB_ROWS, hidden_size=192, intermediate_size=512, num_hidden_layers=5,
        num_attention_heads=6, num_key_value_heads=2, head_dim=48,  # 6 * 48 = 288, not 192
        max_position_embeddings=4096, rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        attention_bias=False, attention_dropout=0.0, use_sliding_window=False, tie_word_embeddings=True,
        bos_token_id=end, eos_token_id=end, pad_token_id=None,
    )  # fmt: skip


def make_optimizers(model: Qwen3ForCausalLM, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    embedding = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" in n]
    norms = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": embedding, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(matrices, lr=args.lr, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95)),
    ]


def lr_factor(step: int, steps: int) -> float:
    """Between the knots of LR_KNOTS, linear; a run of another length than the last knot's is stretched."""
    at = step * LR_KNOTS[-1][0] / steps
    for (x0, y0), (x1, y1) in pairwise(LR_KNOTS):
        if at < x1:
            return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
    return LR_KNOTS[-1][1]


def loss_of(model: Qwen3ForCausalLM, ids: torch.Tensor, autocast: bool) -> torch.Tensor:
    """Mean cross entropy of the next token, in nats. ids: [sequences, length + 1]"""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def batch(stream: torch.Tensor, length: int, openings: torch.Tensor, gen: torch.Generator) -> torch.Tensor:
    """Windows at random offsets, half of them at `openings` if there are any.
    -> [TOKENS_PER_STEP / length, length + 1]"""
    last = len(stream) - length - 1
    starts = torch.randint(last + 1, (TOKENS_PER_STEP // length,), generator=gen)
    if len(openings):
        half = len(starts) // 2
        starts[:half] = openings[torch.randint(len(openings), (half,), generator=gen)].clamp(max=last)
    return torch.stack([stream[s : s + length + 1] for s in starts.tolist()])


@torch.no_grad()
def evaluate(model: Qwen3ForCausalLM, stream: torch.Tensor, autocast: bool = False) -> float:
    """Loss over consecutive windows of EVAL_LENGTH; the stream's last, shorter window is left out."""
    count = (len(stream) - 1) // EVAL_LENGTH
    windows = [stream[i * EVAL_LENGTH : (i + 1) * EVAL_LENGTH + 1] for i in range(count)]
    losses = [loss_of(model, torch.stack(windows[i : i + 8]), autocast) * len(windows[i : i + 8])
              for i in range(0, count, 8)]  # fmt: skip
    return torch.stack(losses).sum().item() / count


@torch.no_grad()
def greedy(model: Qwen3ForCausalLM, tok: Tokenizer, prompt: str, new_tokens: int = 80) -> str:
    ids = torch.tensor([tok.encode(prompt).ids])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False)
    return tok.decode(out[0].tolist())


# ---- output ----------------------------------------------------------------------------------------------------------

CARD = """---
license: apache-2.0
language: en
pipeline_tag: text-generation
---
# tiny-qwen3

A Qwen3 of {params:,} parameters, trained from nothing on the King James Bible, for testing engines. It writes
Bible-like English and knows nothing else.

- **Data**: the text in Debian's package `bible-kjv-text`, one verse a line, chapters closed by `<|endoftext|>`. The
  translation is of 1611 and its copyright has expired. The weights have the project's licence, Apache-2.0.
- **Shape**: {layers} layers, hidden {hidden}, intermediate {inter}, {heads} query heads and {kv} key/value heads of
  {hd}, vocabulary {vocab} rows ({ids} token ids), tied embeddings, rope theta 1e6, up to 4096 positions, bf16.
- **Not trained**: `<|im_start|>` and `<|im_end|>` have ids but no training, so a chat template makes no sense here.
  Training sequences were at most 2048 tokens long; beyond that the model computes, but promises nothing.
- **Made by** `tools/train_tiny.py`; {progress}.
- **Validation loss** of the stored weights (every 20th chapter, {windows}-token windows): {val:.3f} nats a token.

Greedy samples in float32, prompts in bold:

{samples}
"""


def export(model: Qwen3ForCausalLM, tok: Tokenizer, val: torch.Tensor, progress: str, out: Path) -> dict[str, float]:
    """Write the Hugging Face folder from a bf16 copy of the model; each file is moved into place whole."""
    out.mkdir(parents=True, exist_ok=True)
    tmp = Path(tempfile.mkdtemp(prefix=".tiny-qwen3-", dir=out.parent))
    end, im_end = tok.token_to_id(SPECIALS[0]), tok.token_to_id(SPECIALS[2])

    stored = Qwen3ForCausalLM(model.config)
    stored.load_state_dict(model.state_dict())
    stored.bfloat16().eval()
    stored.generation_config = GenerationConfig(
        do_sample=False, bos_token_id=end, eos_token_id=[im_end, end], pad_token_id=end)  # fmt: skip
    stored.save_pretrained(tmp)
    saved = json.loads(tok.to_str())
    saved["decoder"] = saved["post_processor"]  # the same options, which decoders.ByteLevel cannot be given
    (tmp / "tokenizer.json").write_text(json.dumps(saved, indent=2, ensure_ascii=False) + "\n")
    added = {str(i): {"content": s, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                      "special": True} for s in SPECIALS for i in [tok.token_to_id(s)]}  # fmt: skip
    (tmp / "tokenizer_config.json").write_text(json.dumps({
        "add_bos_token": False, "add_prefix_space": False, "added_tokens_decoder": added,
        "additional_special_tokens": SPECIALS[1:], "bos_token": None, "clean_up_tokenization_spaces": False,
        "eos_token": SPECIALS[0], "errors": "replace", "model_max_length": model.config.max_position_embeddings,
        "pad_token": SPECIALS[0], "split_special_tokens": False, "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }, indent=2) + "\n")  # fmt: skip

    # From here on the files are what counts: what is measured below is what was stored.
    result = {"val_bf16": evaluate(Qwen3ForCausalLM.from_pretrained(tmp, dtype=torch.bfloat16), val)}
    stored = Qwen3ForCausalLM.from_pretrained(tmp, dtype=torch.float32)
    result["val_f32"] = evaluate(stored, val)
    samples = [greedy(stored, tok, p) for p in PROMPTS]
    quoted = [f"**{p}**{s[len(p) :]}" for p, s in zip(PROMPTS, samples, strict=True)]
    c = model.config
    (tmp / "README.md").write_text(CARD.format(
        params=model.num_parameters(), layers=c.num_hidden_layers, hidden=c.hidden_size, inter=c.intermediate_size,
        heads=c.num_attention_heads, kv=c.num_key_value_heads, hd=c.head_dim, vocab=c.vocab_size,
        ids=tok.get_vocab_size(), progress=progress, windows=EVAL_LENGTH, val=result["val_f32"],
        samples="\n\n".join("> " + q.strip().replace("\n", "\\\n> ") for q in quoted),
    ))  # fmt: skip

    for file in sorted(tmp.iterdir()):
        file.chmod(0o644)
        os.replace(file, out / file.name)
    tmp.rmdir()
    print(f"exported {out}: {result}", *samples, sep="\n--- ", flush=True)
    return result


def write_csv(rows: list[dict[str, float]], path: Path) -> None:
    lines = [",".join(rows[0]), *(",".join(f"{v:.6g}" for v in r.values()) for r in rows)]
    path.write_text("\n".join(lines) + "\n")


def write_svg(rows: list[dict[str, float]], path: Path) -> None:
    """The curve as a hand-made picture: train and validation loss over steps."""
    width, height, left, right, top, bottom = 720, 360, 56, 16, 36, 44
    steps = rows[-1]["step"]
    losses = [r[k] for r in rows for k in ("train_loss", "val_loss")]
    low, high = math.floor(min(losses) * 2) / 2, math.ceil(max(losses) * 2) / 2

    def x(step: float) -> float:
        return left + (width - left - right) * step / steps

    def y(loss: float) -> float:
        return top + (height - top - bottom) * (high - loss) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        "<style>text { font-size: 12px }</style>",
        "<title>tiny-qwen3: training and validation loss</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{left}" y="20">tiny-qwen3: loss (nats a token)</text>',
    ]
    for i in range(round((high - low) * 2) + 1):
        v = low + i / 2
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.1f}</text>')
    tick = next(t for t in (10, 50, 100, 250, 500, 1000, 5000, 10**9) if steps / t <= 9)
    for s in range(0, int(steps) + 1, tick):
        parts.append(f'<text x="{x(s):.1f}" y="{height - bottom + 18}" text-anchor="middle">{s}</text>')
    parts.append(f'<text x="{(left + width) / 2}" y="{height - 8}" text-anchor="middle">step</text>')
    for i, (key, name, colour) in enumerate(
        [("train_loss", "training", "#0072b2"), ("val_loss", "validation", "#d55e00")]
    ):
        points = " ".join(f"{x(r['step']):.1f},{y(r[key]):.1f}" for r in rows)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{width - right - 200 + 90 * i}" y="20" fill="{colour}">{name}</text>')
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--steps", type=int, default=1850, help=f"steps of {TOKENS_PER_STEP} tokens (default %(default)s)")
    ap.add_argument("--lr", type=float, default=8e-3, help="peak learning rate (default %(default)s)")
    ap.add_argument("--seed", type=int, default=1611)
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--no-autocast", dest="autocast", action="store_false",
                    help="products in f32 too; the weights are f32 either way")  # fmt: skip
    ap.add_argument("--log-every", type=int, default=100, help="steps between rows of the curve (default %(default)s)")
    ap.add_argument("--export-at", type=int, nargs="*", default=[], help="steps after which to export early as well")
    ap.add_argument("--checkpoint", type=Path, help="file to keep the run's state in; if it is there, go on from it")
    ap.add_argument("--out", type=Path, default=ROOT / "models" / "tiny-qwen3")
    ap.add_argument("--curve", type=Path, default=ROOT / "docs" / "tiny-qwen3-loss",
                    help="where the curve goes, without .csv and .svg (default %(default)s)")  # fmt: skip
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    gen = torch.Generator().manual_seed(args.seed)

    named = read_chapters()
    chapters = list(named.values())
    held_out = chapters[10::20]
    kept = [c for i, c in enumerate(chapters) if i % 20 != 10]
    kept_names = [n for i, n in enumerate(named) if i % 20 != 10]
    tok = train_tokenizer(kept)
    train, val = encode(tok, kept), encode(tok, held_out)
    ends = torch.nonzero(train == tok.token_to_id(SPECIALS[0])).flatten().tolist()
    starts = zip(kept_names, [0, *(e + 1 for e in ends[:-1])], strict=True)
    openings = torch.tensor([s for name, s in starts if re.fullmatch(r"\d?[A-Za-z]+1", name)])
    like_val = encode(tok, kept[10::20])  # as many chapters that are trained on, to compare
    val_bytes = sum(len(c.encode()) for c in held_out)
    print(f"train {len(kept)} chapters, {len(train)} tokens; val {len(held_out)} chapters, {len(val)} tokens, "
          f"{val_bytes} bytes", flush=True)  # fmt: skip

    model = Qwen3ForCausalLM(make_config(tok))
    optimizers = make_optimizers(model, args)
    rows: list[dict[str, float]] = []
    recent: list[float] = []
    if args.checkpoint and args.checkpoint.exists():
        state = torch.load(args.checkpoint)
        model.load_state_dict(state["model"])
        for opt, kept_state in zip(optimizers, state["optimizers"], strict=True):
            opt.load_state_dict(kept_state)
        gen.set_state(state["gen"])
        rows = state["rows"]
    first = int(rows[-1]["step"]) if rows else 0
    began = time.monotonic() - (rows[-1]["seconds"] if rows else 0)
    for step in range(first, args.steps):
        second = step >= OPENINGS_FROM * args.steps / LR_KNOTS[-1][0]
        ids = batch(train, LENGTHS[step % len(LENGTHS)], openings if second else openings[:0], gen)
        loss = loss_of(model, ids, args.autocast)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        factor = lr_factor(step, args.steps)
        for opt in optimizers:
            for group in opt.param_groups:
                group["lr"] = args.lr * factor
            opt.step()
            opt.zero_grad(set_to_none=True)
        recent.append(loss.item())

        done = step + 1
        if done % args.log_every == 0 or done == args.steps:
            rows.append({"step": done, "tokens": done * TOKENS_PER_STEP, "seconds": time.monotonic() - began,
                         "lr": args.lr * factor, "train_loss": sum(recent) / len(recent),
                         "val_loss": evaluate(model, val, args.autocast)})  # fmt: skip
            recent.clear()
            print("  ".join(f"{k} {v:.5g}" for k, v in rows[-1].items()), flush=True)
            write_csv(rows, args.curve.with_suffix(".csv"))
            if args.checkpoint:
                torch.save({"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers],
                            "gen": gen.get_state(), "rows": rows}, args.checkpoint)  # fmt: skip
        if done in args.export_at and done != args.steps:
            export(model, tok, val, f"interrupted at step {done} of {args.steps}, to be replaced", args.out)

    minutes = (time.monotonic() - began) / 60
    write_svg(rows, args.curve.with_suffix(".svg"))
    progress = f"{args.steps} steps of {TOKENS_PER_STEP} tokens, {minutes:.0f} minutes on {args.threads} thread(s)"
    final = export(model, tok, val, progress, args.out)
    bits = final["val_f32"] * len(val) / val_bytes / math.log(2)
    print(
        f"minutes {minutes:.1f}, val loss before the cast {evaluate(model, val):.4f}, stored {final}, "
        f"{bits:.4f} bits a byte; on training chapters {evaluate(model.bfloat16().float(), like_val):.4f}"
    )


if __name__ == "__main__":
    main()
