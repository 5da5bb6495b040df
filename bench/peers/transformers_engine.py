"""Hugging Face's Qwen3ForCausalLM on PyTorch's CPU kernels."""

from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import DynamicCache, Qwen3ForCausalLM


class Engine:
    attention = "sdpa"

    def __init__(self, model: Path, threads: int):
        torch.set_num_threads(threads)
        self.name = f"transformers {transformers.__version__}, PyTorch {torch.__version__}, {self.attention}"
        self.model = Qwen3ForCausalLM.from_pretrained(
            model, dtype=torch.bfloat16, attn_implementation=self.attention
        ).eval()

    def reset(self, capacity: int) -> None:
        self.cache = DynamicCache()

    @torch.inference_mode()
    def forward(self, tokens: list[int]) -> np.ndarray:
        out = self.model(torch.tensor([tokens]), past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return out.logits[0, -1].float().numpy()
