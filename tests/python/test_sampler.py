"""The C++ sampler against transformers' own processors: the same tokens kept, with the same probabilities."""

import itertools
import subprocess

import numpy as np
import pytest
import torch
from programs import SAMPLER
from transformers import GenerationConfig, LogitsProcessorList, Qwen3Config
from transformers.generation import GenerationMixin

VOCAB = 1000
SEEN = [3, 3, 17, 500, 501, 999, 42]


def logits_of(kind: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "ties":
        return (rng.integers(-16, 16, VOCAB) / 4).astype(np.float32)
    logits = rng.normal(scale={"peaked": 6.0, "flat": 0.01}.get(kind, 2.0), size=VOCAB).astype(np.float32)
    if kind == "masked":
        logits[rng.random(VOCAB) < 0.5] = -np.inf
    return logits


class Processors(GenerationMixin):
    """generate()'s own list of processors, in its own order."""

    def __init__(self):
        self.config = Qwen3Config()

    def __call__(self, **options) -> LogitsProcessorList:
        config = GenerationConfig(do_sample=True, **options)
        return self._get_logits_processor(config, input_ids_seq_length=1, encoder_input_ids=None, device="cpu")


def expected(logits: np.ndarray, options: dict) -> dict[int, float]:
    """In float64, because a cumulative sum in float32 is too coarse to say which token is the last one kept."""
    scores = Processors()(**options)(torch.tensor([SEEN]), torch.from_numpy(logits).double()[None])[0]
    probabilities = scores.softmax(-1)
    return {i: float(probabilities[i]) for i in torch.nonzero(scores > -torch.inf).flatten().tolist()}


def found(logits: np.ndarray, options: dict) -> dict[int, float]:
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    numbers = [repr(options[name] or 0) for name in names]
    done = subprocess.run(
        [SAMPLER, *numbers, ",".join(map(str, SEEN))], input=logits.tobytes(), capture_output=True, check=True
    )
    lines = (line.split() for line in done.stdout.decode().splitlines())
    return {int(token): float(probability) for token, probability in lines}


# No top_p that equally likely tokens could hit exactly: rounding decides there.
GRID = list(
    itertools.product(
        (1.0, 0.6, 1.7), (0, 1, 20, 5000), (1.0, 0.9471, 0.4713, 1e-6), (None, 0.05, 1.0), (1.0, 1.3, 0.8)
    )
)


@pytest.mark.parametrize("kind", ["normal", "peaked", "flat", "masked", "ties"])
def test_the_same_tokens_are_kept(kind):
    for number, (temperature, top_k, top_p, min_p, penalty) in enumerate(GRID[::5]):
        options = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": penalty,
        }
        logits = logits_of(kind, number)
        want, got = expected(logits, options), found(logits, options)
        if kind == "ties":  # which of them PyTorch's sort puts last is left open
            got, want = (dict(enumerate(sorted(kept.values()))) for kept in (got, want))
        assert got.keys() == want.keys(), options
        np.testing.assert_allclose(list(got.values()), list(want.values()), rtol=1e-4, err_msg=str(options))


def test_the_order_of_the_processors():
    """That the order above is transformers': its list, by name."""
    processors = Processors()(temperature=0.5, top_k=5, top_p=0.5, min_p=0.1, repetition_penalty=1.5)
    assert [type(processor).__name__ for processor in processors] == [
        "RepetitionPenaltyLogitsProcessor",
        "TemperatureLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "MinPLogitsWarper",
    ]
