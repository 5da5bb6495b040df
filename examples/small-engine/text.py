"""The text of token ids: of those on stdin (text.py MODEL), or of what a trace's run chose (text.py MODEL TRACE)."""

import sys
from pathlib import Path

from safetensors.numpy import load_file
from tokenizers import Tokenizer

model, *traces = sys.argv[1:]
if traces:  # a trace is plain safetensors, a file for each forward call
    steps = sorted(Path(traces[0]).glob("step-*.safetensors"))
    ids = [int(load_file(step)["next_token"][0]) for step in steps]
else:
    ids = [int(word) for word in sys.stdin.read().split()]
print(Tokenizer.from_file(f"{model}/tokenizer.json").decode(ids))
