"""`lockstep show`: figures against numpy, and what it says of unsound, hostile and missing things."""

import json

import lockstep as lockstep_package
import numpy as np
import pytest
from lockstep.trace import Selection, TraceWriter
from programs import TINY, lockstep
from runs import prompts, run_engine

QUANTILES = [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99]
POINT = "layer_3_attn_q_rope"


def show(*arguments, code=0, says=""):
    done = lockstep("show", *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert says in done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def look(tmp_path, *arguments):
    show(*arguments, "--json", tmp_path / "look.json")
    return json.loads((tmp_path / "look.json").read_text())["tensors"]


@pytest.fixture(scope="module", params=["f32", "bf16", "f16"])
def trace(request, tmp_path_factory):
    """Two sequences, prefilled and decoded, with the attention scores."""
    out = tmp_path_factory.mktemp("show") / "x.trace"
    options = ("--decode", 2, "--dtype", request.param, "--points", "*,attn_scores,attn_probs")
    return run_engine(TINY, out, *prompts([7, 4], 2048), *options)


def rows_of(path, name):
    rows = lockstep_package.load(path).rows(name)
    return {key: np.asarray(row).astype(np.float32) for key, row in sorted(rows.items())}


def check_stats(stats, values):
    values = values.astype(np.float64).ravel()
    assert stats["count"] == values.size
    for name, expected in [("mean", values.mean()), ("std", values.std()), ("rms", np.sqrt((values**2).mean()))]:
        assert stats[name] == pytest.approx(expected, rel=1e-12, abs=1e-15), name
    assert (stats["min"], stats["max"]) == (values.min(), values.max())
    found = [quantile["value"] for quantile in stats["quantiles"]]
    np.testing.assert_allclose(found, np.quantile(values, QUANTILES), rtol=1e-12, atol=1e-15)
    assert stats["histogram"] == np.histogram(values, 40)[0].tolist()


def test_a_whole_tensor(trace, tmp_path):
    for name in (POINT, "logits", "layer_0_mlp_gate_proj"):
        rows = rows_of(trace, name)
        (found,) = look(tmp_path, trace, name)
        assert found["rows"] == len(rows)
        check_stats(found["stats"], np.stack(list(rows.values())))


SLICES = {
    "pos=5, head=2": (lambda s, p, last: p == 5, np.s_[2]),
    "seq=1": (lambda s, p, last: s == 1, np.s_[:]),
    "pos=-1,channel=0:8": (lambda s, p, last: p == last, np.s_[:, 0:8]),
    "head=1,3, pos=1:3": (lambda s, p, last: 1 <= p < 3, np.s_[[1, 3]]),
    "seq=0,pos=0,-2:,q_head=-1,head_dim=47": (lambda s, p, last: s == 0 and (p == 0 or p > last - 2), np.s_[5:, 47:]),
}


@pytest.mark.parametrize("text", SLICES)
def test_slices_and_npy(trace, tmp_path, text):
    wanted, elements = SLICES[text]
    rows = rows_of(trace, POINT)
    last = {sequence: position for sequence, position in rows}
    expected = np.stack([row[elements] for (s, p), row in rows.items() if wanted(s, p, last[s])])
    (found,) = look(tmp_path, trace, f"{POINT}[{text}]", "--npy", tmp_path / "x.npy")
    check_stats(found["stats"], expected)
    array = np.load(tmp_path / "x.npy")
    storage = lockstep_package.load(trace).steps[0].tensors[POINT].dtype
    assert array.dtype == (np.float16 if storage == "F16" else np.float32) and array.ndim == 3
    np.testing.assert_array_equal(array.ravel(), expected.astype(array.dtype).ravel())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["look.json", "x.npy"]


def test_attention(trace, tmp_path):
    rows = rows_of(trace, "layer_1_attn_probs")
    (found,) = look(tmp_path, trace, "layer_1_attn_probs[pos=5, head=2, key=0:6]")
    expected = np.stack([row[2, 0:6] for (s, p), row in rows.items() if p == 5])
    assert found["stats"]["mean"] == pytest.approx(expected.astype(np.float64).mean())
    (found,) = look(tmp_path, trace, "layer_1_attn_scores[pos=3]")
    assert found["stats"]["inf"] == 0 and found["stats"]["finite"] == 2 * 6 * 4  # 4 keys are not masked


def test_a_line_for_every_layer(trace, tmp_path):
    found = look(tmp_path, trace, "layer_*_attn_q_rope[head=2]")
    assert [tensor["name"] for tensor in found] == [f"layer_{i}_attn_q_rope" for i in range(5)]
    assert len(show(trace, "layer_*_attn_q_rope").splitlines()) == 6
    show(trace, "layer_*_attn_q_rope", "--npy", tmp_path / "x.npy", code=2, says="holds one tensor")


def test_the_difference_agrees_with_compare(tmp_path):
    a = run_engine(TINY, tmp_path / "a", *prompts([7, 4], 2048))
    b = run_engine(TINY, tmp_path / "b", *prompts([7, 4], 2048), "--dtype", "bf16", "--chunk", 3)
    lockstep("compare", a, b, "--json", tmp_path / "r.json")
    compared = {point["name"]: point for point in json.loads((tmp_path / "r.json").read_text())["points"]}
    for found in look(tmp_path, a, "layer_*_mlp_*", "--diff", b):
        point, difference = compared[found["name"]], found["difference"]
        assert difference["max_abs"] == point["max_abs"]
        for name in ("mean_abs", "relative_l2", "cosine"):
            assert difference[name] == pytest.approx(point[name], rel=1e-9), (found["name"], name)
    ours, theirs = rows_of(a, POINT), rows_of(b, POINT)
    (found,) = look(tmp_path, a, f"{POINT}[seq=1,pos=2,head=4]", "--diff", b)
    distance = np.abs(theirs[1, 2][4].astype(np.float64) - ours[1, 2][4])
    assert found["difference"]["max_abs"] == distance.max()
    assert found["difference"]["largest"][0]["at"]["channel"] == distance.argmax()
    assert show(a, POINT, "--diff", a).count("none in")


def write(path, tensors, config=None, **options):
    """One step of T tokens of sequence 0."""
    count = len(next(iter(tensors.values())))
    with (
        TraceWriter(path, producer="test", config=config or {}, selection=Selection(), **options) as trace,
        trace.begin_step(np.arange(count), np.arange(count), np.zeros(count, int)) as step,
    ):
        for name, values in tensors.items():
            step.record(name, values)
    return path


def test_health(tmp_path):
    rng = np.random.default_rng(1)
    good = rng.normal(size=(4, 8)).astype(np.float32)
    cases = {name: good.copy() for name in ("fine", "nan", "inf", "row", "same", "filled", "huge")}
    cases["nan"][2, 5] = np.nan
    cases["inf"][1, 3] = -np.inf
    cases["row"][3] = 0
    cases["same"][1] = 0.25
    cases["filled"].view(np.uint8)[2] = 0xCD
    cases["huge"][0, 7] = -2e6
    cases |= {"zero": np.zeros_like(good), "tiny": good * np.float32(1e-20), "half": good.astype(np.float16)}
    cases["half"][3, 1] = 65504
    path = write(tmp_path / "t", cases, points=[*cases, "layer_0_never"])
    show(path, "--json", tmp_path / "r.json")
    listing = json.loads((tmp_path / "r.json").read_text())
    found = {point["name"]: point["health"] for point in listing["points"]}
    kinds = {
        "fine": [], "nan": ["NaN"], "inf": ["Inf"], "row": ["zero rows"], "same": ["constant rows"],
        "filled": ["huge", "never written"], "huge": ["huge"], "zero": ["all zero"], "tiny": ["tiny"],
        "half": ["saturated"],
    }  # fmt: skip
    assert {name: [ailment["kind"] for ailment in health] for name, health in found.items()} == kinds
    assert found["nan"][0]["first"] == {"sequence": 0, "position": 2, "channel": 5}
    assert found["filled"][1]["value"] == 0xCD and found["huge"][0]["value"] == 2e6
    assert listing["never_written"] == ["layer_0_never"]
    text = show(path)
    assert "1 NaN; first in step 0, sequence 0, position 2, channel 5" in text and "layer_0_never" in text


def test_shards_and_sums_of_ranks(tmp_path):
    rng = np.random.default_rng(2)
    heads = rng.normal(size=(3, 4, 8)).astype(np.float32)
    parts = rng.normal(size=(2, 3, 16)).astype(np.float32)
    tensors = {"*attn_q_rope": {"shard": {"axis": "q_head", "count": 2}}, "*o_proj": {"partial": True}}
    with TraceWriter(tmp_path / "t", producer="test", config={}, selection=Selection(), tensors=tensors) as trace:
        for rank in range(2):
            with trace.begin_step(np.arange(3), np.arange(3), np.zeros(3, int), rank=rank) as step:
                step.record("layer_0_attn_q_rope", heads[:, 2 * rank : 2 * rank + 2])
                step.record("layer_0_attn_o_proj", parts[rank])
    (found,) = look(tmp_path, tmp_path / "t", "layer_0_attn_q_rope[head=1:4]")
    check_stats(found["stats"], heads[:, 1:4])
    show(tmp_path / "t", "layer_0_attn_o_proj", "--npy", tmp_path / "x.npy")
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), parts.sum(0), rtol=1e-6)
    assert "q_head / 2" in show(tmp_path / "t") and "sum of 2 ranks" in show(tmp_path / "t")


def test_the_listing_is_folded(trace):
    text = show(trace)
    assert len(text.splitlines()) < 45 and "attn_q_rope          0-4" in text and "KiB" in text
    assert "sequence 1 position 0-3" in text and "state      closed" in text
    assert len(show(trace, "--all").splitlines()) > 200
    assert "\x1b" not in text and all(len(line) <= 120 for line in text.splitlines())


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("layer_3_attn_q_ropp", "did you mean layer_3_attn_q_rope"),
        ("q_rope", "did you mean"),
        (f"{POINT}[pos=5", "expected a slice such as"),
        (f"{POINT}[head=6]", "axis q_head has 6 entries"),
        (f"{POINT}[head=3:3]", "chooses nothing"),
        (f"{POINT}[pos=99]", "axis pos goes to"),
        (f"{POINT}[pos=50:]", "chooses nothing"),
        (f"{POINT}[seq=2]", "chooses nothing"),
        (f"{POINT}[hidden=0]", "expected axes out of seq, pos, q_head (6), head_dim (48)"),
        (f"{POINT}[head=0,q_head=1]", "each once"),
        ("layer_9_*", "no step holds"),
    ],
)
def test_bad_input(trace, what, says):
    show(trace, what, code=2, says=says)


def test_an_unwritable_file_leaves_nothing(trace, tmp_path):
    show(trace, POINT, "--npy", tmp_path / "no" / "x.npy", code=2, says="cannot be written")
    (tmp_path / "x.npy").mkdir()
    show(trace, POINT, "--npy", tmp_path / "x.npy", code=2, says="cannot be written")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_hostile_names(tmp_path):
    values = np.ones((2, 3), np.float32) * np.arange(3, dtype=np.float32)
    names = ["\x9b31mred", "\u202eright", "n" * 3000, "a[pos=1]", "<b>", "x*"]
    path = write(tmp_path / "t", dict.fromkeys(names, values))
    text = show(path) + show(path, "--all") + show(path, names[2]) + show(path, "*[pos=1]")
    assert "\x9b" not in text and "\u202e" not in text and "n" * 200 not in text
    assert look(tmp_path, path, "a[pos=1]")[0]["rows"] == 2  # its very name
    assert look(tmp_path, path, "a[pos=1][pos=1]"[:8])[0]["name"] == "a[pos=1]"
