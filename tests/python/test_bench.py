"""`lockstep bench`: what it reports is complete and adds up. Nothing here depends on how fast the machine is."""

import json
import statistics

import pytest
from programs import TINY, lockstep

PROMPTS = [16, 40]
CONTEXTS = [16, 24]
ROUNDS = 2
SMALL = ("--prefill", "16,40", "--decode", "16,24", "--repeat", ROUNDS)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Everything that was measured, what was printed, and the directory for temporary files."""
    out = tmp_path_factory.mktemp("bench")
    (out / "tmp").mkdir()
    env = {"TMPDIR": str(out / "tmp")}
    done = lockstep("bench", TINY, *SMALL, "--threads", 2, "--json", out / "bench.json", env=env)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "bench.json").read_text()), done, out / "tmp"


def assert_samples(figure: dict, rounds: int | None = ROUNDS) -> list[float]:
    samples = figure["samples"]
    assert (rounds is None or len(samples) == rounds) and all(sample > 0 for sample in samples)
    assert figure["median"] == pytest.approx(statistics.median(samples))
    assert figure["best"] == max(samples)
    return samples


def test_says_what_was_measured(measured):
    result, done, _ = measured
    assert result["schema"] == "lockstep-bench/1" and result["model"] == str(TINY) and not result["random_weights"]
    assert (result["dtype"], result["threads"]) == ("BF16", 2)
    assert result["config"]["hidden_size"] == 192
    assert result["load_seconds"] > 0
    assert result["peak_memory_bytes"] >= result["loaded_memory_bytes"] > 1 << 20
    assert "own kernels" in result["engine"] and result["peak_loop"] in done.stdout
    assert done.stderr == ""  # no progress in a pipe


def test_limits_are_measured_around_every_figure(measured):
    result, _, _ = measured
    reads = assert_samples(result["read_bytes_per_second"], 2 * ROUNDS * len(CONTEXTS))
    peaks = assert_samples(result["peak_flops_per_second"], 2 * ROUNDS * len(PROMPTS))
    for speeds, limits in ((result["decode"], reads), (result["prefill"], peaks)):
        for speed in speeds:
            assert set(assert_samples(speed["limit"])) <= set(limits)


@pytest.mark.parametrize(
    ("phase", "tokens", "lengths", "work"),
    [
        ("prefill", "prompt_tokens", PROMPTS, "flops_per_token"),
        ("decode", "context_tokens", CONTEXTS, "bytes_per_token"),
    ],
)
def test_shares_are_figures_over_limits(measured, phase, tokens, lengths, work):
    result, _, _ = measured
    assert [speed[tokens] for speed in result[phase]] == lengths
    for speed in result[phase]:
        rates = assert_samples(speed["tokens_per_second"])
        limits = assert_samples(speed["limit"])
        shares = assert_samples(speed["share_of_limit"])
        for rate, limit, share in zip(rates, limits, shares, strict=True):
            assert share == pytest.approx(rate * speed[work] / limit)


def test_work_is_counted(measured):
    result, _, _ = measured
    c = result["config"]
    heads, kv_heads, width = c["num_attention_heads"], c["num_key_value_heads"], c["hidden_size"]
    attention = 2 * width * (heads + kv_heads) * c["head_dim"]
    matrices = c["num_hidden_layers"] * (attention + 3 * width * c["intermediate_size"])
    head = c["vocab_size"] * width
    keys = sum(range(1, 41))
    scores = 4 * c["num_hidden_layers"] * heads * c["head_dim"] * keys
    assert result["prefill"][1]["flops_per_token"] == pytest.approx((40 * 2 * matrices + scores + 2 * head) / 40)
    # A step reads all matrices, and one key and one value of each layer and token more than the step before.
    at_16, at_24 = (speed["bytes_per_token"] for speed in result["decode"])
    assert at_24 - at_16 == 8 * c["num_hidden_layers"] * 2 * kv_heads * c["head_dim"] * 2
    assert at_16 == pytest.approx(2 * (matrices + head), rel=0.02)


def test_costs_of_capture(measured):
    result, _, directory = measured
    costs = {(cost["mode"], cost["phase"]): cost for cost in result["capture"]}
    assert set(costs) == {("off", "prefill"), ("off", "decode"), ("disk", "prefill"), ("live", "prefill")}
    for cost in costs.values():
        plain = assert_samples(cost["plain_seconds"])
        capture = assert_samples(cost["capture_seconds"])
        ratios = assert_samples(cost["ratio"])
        written = [0.0] * ROUNDS
        if cost["mode"] == "disk":
            written = [cost["bytes"] / rate for rate in assert_samples(cost["write_bytes_per_second"])]
        for p, c, w, ratio in zip(plain, capture, written, ratios, strict=True):
            assert ratio == pytest.approx(c / (p + w))
    # At the least the hidden states of 3 + 5 · 5 points, 16 tokens of 192 channels in bf16, and all rows of logits.
    assert costs["disk", "prefill"]["bytes"] > 16 * 2 * (28 * 192 + 2048)
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_other_dtypes(dtype, tmp_path):
    options = ("--prefill", 4, "--decode", 4, "--repeat", 1, "--dtype", dtype, "--json", tmp_path / "r.json")
    assert lockstep("bench", TINY, *options).returncode == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["dtype"] == dtype.upper() and "vdpbf16ps" not in result["peak_loop"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected a checkpoint's directory or a shape, found neither"),
        ((TINY, "--shape", "qwen3-0.6b"), "found both"),
        (("--shape", "qwen3-7b"), "shape qwen3-7b: expected one of qwen3-0.6b"),
        (("/no/such/model",), "/no/such/model"),
        ((TINY, "--repeat", 0), "--repeat"),
        ((TINY, "--threads", 0), "--threads"),
        ((TINY, "--prefill", "0"), "expected lengths above 0, found 0"),
        ((TINY, "--decode", "-3"), "expected lengths above 0, found -3"),
        ((TINY, "--decode", "4096"), "max_position_embeddings 4096"),
        ((TINY, "--prefill", "12x"), "--prefill"),
        ((TINY, "--dtype", "f64"), "--dtype"),
    ],
)
def test_bad_input(arguments, message):
    done = lockstep("bench", *arguments)
    assert done.returncode == 2
    assert message in done.stderr, done.stderr
