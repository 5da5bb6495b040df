"""The zoo: that its mutants are what they say, and a fixed sample of it before the judge (`make zoo` runs all)."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from zoo import clean, noise, run, verdict  # noqa: E402
from zoo.context import Mutant, Part  # noqa: E402
from zoo.models import Models  # noqa: E402
from zoo.mutants import ALL  # noqa: E402
from zoo.oddities import ODDITIES  # noqa: E402
from zoo.play import play, write_trace  # noqa: E402
from zoo.report import markdown, text  # noqa: E402
from zoo.runs import RUNS  # noqa: E402
from zoo.vocabulary import CAUSES, CAUSES_BY_OP, PATTERNS  # noqa: E402

# Causes that no mutant must be named by: those that describe what a more precise cause names.
ONLY_BESIDE_OTHERS = {"noise", "op-twice"}
NOT_PLANTED = {"shape"}  # the oddity E6
# The numeric bugs of public trackers that a dense Qwen3 can have.
TRACKED_BUGS = (
    "torchtune#2809 AiDotNet#2074 nanotron#427 TinyLlama#24 airllm#369 DeepSpeed#8345 llama.cpp#8676 tiny-vllm#1 "
    "ik_llama.cpp#2291 transformers#29285 sglang-jax#1472 mlx-vlm#1983 flashinfer#847 Camelid#266 tt-mlir#9042 "
    "vllm#16311 llama.cpp#2373 aprender#1606 FastDeploy#2804 MinivLLM#82 llama.cpp#14545 sglang#27540 vllm-omni#6878 "
    "ANEForge#253 candle-vllm#167 1bit-MONSTER#864 1bit-MONSTER#2147 FastDeploy#2737 sglang#18024 pegainfer#544 "
    "sglang#20127 candle#2930 mlx-lm#767 aprender#479 jax-js#180 onnx#7274 candle#3567 TinyLLM#18 "
    "transformers#38002 transformers#35924 llama.cpp#7805 transformers#33317 mlx-vlm#1755 InfiniCore#746 imp#660 E1: "
    "E2: E3: E4: E5: E7: E8: "
)
TRACKED = TRACKED_BUGS.split()


# Without those that are another mutant whose own point is not captured.
OWN = [mutant for mutant in ALL if not mutant.seen_at]


def first_dtype(mutant: Mutant) -> str:
    return mutant.dtypes[0]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Models:
    """Small models in place of the large: one with square projections, one whose head_dim is not hidden/heads."""
    from checkpoints import make_checkpoint

    directory = tmp_path_factory.mktemp("models")
    shape = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 900, "tie_word_embeddings": False}
    made = {
        "square": make_checkpoint(directory / "square", **shape, max_position_embeddings=2048),
        "odd": make_checkpoint(directory / "odd", **shape | {"head_dim": 24}, max_position_embeddings=2048),
    }
    models = Models(directory)
    models.checkpoint = made.__getitem__
    return models


def model_for(mutant: Mutant) -> str:
    return "odd" if mutant.models == ("tiny",) else "square"


# --- The tables -----------------------------------------------------------------------------------------------------


def test_there_are_enough_and_each_has_its_own_id():
    assert len({mutant.id for mutant in ALL}) == len(ALL) >= 70


def test_causes_and_patterns_are_of_the_vocabulary():
    for mutant in ALL:
        for part in mutant.parts:
            assert set(part.causes) - {None} <= CAUSES, mutant.id
            assert set(part.patterns) <= PATTERNS, mutant.id
            assert None not in part.causes or part.patterns, f"{mutant.id}: unexplained by what pattern?"


def test_every_cause_is_planted():
    first = {part.causes[0] for mutant in ALL for part in mutant.parts}
    assert CAUSES - first == ONLY_BESIDE_OTHERS | NOT_PLANTED


def test_every_tracked_bug_is_planted():
    bugs = " ".join(mutant.bug for mutant in ALL)
    assert [name for name in TRACKED if name not in bugs] == []


def test_every_place_is_covered():
    wheres = [part.where for mutant in ALL for part in mutant.parts]
    assert {"all", "later", "last", 0, 1, 2} <= {where.layers for where in wheres}
    assert any(where.phase == "decode" for where in wheres) and any(where.later_chunk for where in wheres)
    assert any(where.sequence for where in wheres) and any(where.heads for where in wheres)
    assert any(where.rows for where in wheres) and {mutant.run for mutant in ALL} == set(RUNS) - {"long-rows"}
    assert sum(len(mutant.parts) > 1 for mutant in ALL) >= 10


def test_the_sample_covers_every_op_and_kind_of_place():
    cases, mutants = run.sampled()
    assert len(cases) >= 8 and 20 <= len(mutants) <= 60
    points = {point for mutant, _, _ in mutants for part in mutant.parts for point in part.points}
    assert {noise.op_kind(point) for point in points} >= set(CAUSES_BY_OP) - {"any"}
    assert {mutant.run for mutant, _, _ in mutants} >= {"prefill", "decode", "chunks", "batch", "small", "scores"}
    assert {(name, dtype) for _, name, dtype in mutants} >= {("tiny", "f32"), ("tiny", "bf16"), ("wide", "bf16")}


# --- The mutants themselves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mutant", OWN, ids=lambda mutant: mutant.id)
def test_a_mutant_changes_its_points_and_none_before(models, mutant):
    loaded = models.load(model_for(mutant), first_dtype(mutant))
    played = play(loaded, RUNS[mutant.run], mutant)
    assert {name for name, effect in played.effects.items() if effect.value > 0}, "no effect at all"
    sound = reference_run(models, mutant)
    first = min((name for name, effect in played.effects.items() if effect.value > 0), key=played.order)
    for step, other in zip(played.steps[:1], sound.steps[:1], strict=True):
        before = [name for name in step.tensors if played.order(name) < played.order(first)]
        assert all(torch.equal(step.tensors[name], other.tensors[name]) for name in before)


def reference_run(models: Models, mutant: Mutant, cache: dict = {}):  # noqa: B006 - kept on purpose
    key = (mutant.run, model_for(mutant), first_dtype(mutant))
    if key not in cache:
        cache[key] = play(models.load(key[1], key[2]), RUNS[key[0]])
    return cache[key]


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("mutant", [m for m in OWN if m.sample], ids=lambda mutant: mutant.id)
def test_errors_are_local(models, mutant, dtype):
    """Every op but the replaced ones is right on the mutant's own tensors; the replaced ones show what was expected."""
    if dtype not in mutant.dtypes:
        pytest.skip("the mutant makes no sense there")
    played = play(models.load("square", dtype), RUNS[mutant.run], mutant, check=True)
    for name, local in played.local.items():
        if name not in played.effects and name not in verdict.consequences(mutant, played):
            assert is_finite(played, name) is False or is_clean(local), (name, local)
        elif name in played.effects and played.effects[name].grade == "above":
            assert local.over_limit() > 1, (name, local, played.effects[name])


def is_finite(played, name: str) -> bool:
    """Whether the tensor, and so its inputs, is free of what an overflow left."""
    return all(bool(step.tensors[name].isfinite().all()) for step in played.steps if name in step.tensors)


def is_clean(local: noise.Effect) -> bool:
    return local.noise() < 1


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("id", [*clean.VARIANTS, "none"])
def test_correct_variants_are_within_the_noise(models, id, dtype):
    parts = () if id == "none" else clean.VARIANTS[id][1]
    played = play(models.load("square", dtype), RUNS["batch"], Mutant(id, "", parts), check=True)
    assert {name: local for name, local in played.local.items() if not is_clean(local)} == {}


def test_an_effect_is_measured_in_noise_units():
    value = torch.ones(4, 3, 8, dtype=torch.float64)
    wrong = value.clone()
    wrong[2, 1, 5] += 0.5
    limits = noise.Limits.of("attn_q_normed", torch.bfloat16)
    effect = noise.effect(wrong, value, torch.full_like(value, 0.01), limits)
    assert limits.value == 8 and effect.over_limit() == pytest.approx(5 / 8)
    assert effect.value == pytest.approx(5) and effect.row == pytest.approx(5 / 24**0.5)
    assert effect.head == pytest.approx(5 / 32**0.5) and effect.scale == pytest.approx(0.5 / 96)


# --- The scoring: an answer of the judge, and what becomes of it ----------------------------------------------------


def answer(first: str | None, cause: str | None, patterns: tuple[str, ...] = (), others: tuple[str, ...] = ()) -> dict:
    names = ([first] if first else []) + list(others)
    return {
        "points": [{"name": name, "verdict": "faulty", "op": "rope"} for name in names],
        "first_faulty": first,
        "findings": [{"points": [name], "cause": cause, "patterns": [{"id": id} for id in patterns]} for name in names],
    }


RIGHT = "layer_0_attn_q_rope"


@pytest.mark.parametrize(
    "given, is_found, is_named, is_wrong",
    [
        (answer(RIGHT, "rope-interleaved"), True, True, False),
        (answer(RIGHT, None, ("exact-at-position-0",)), True, False, False),
        (answer(RIGHT, "rope-theta"), True, False, True),
        (answer("layer_1_attn_q_rope", "rope-interleaved"), False, True, False),
        (answer(None, None), False, False, False),
        (answer(RIGHT, "rope-interleaved", others=("logits",)), True, True, True),
    ],
)
def test_answers_are_scored(models, given, is_found, is_named, is_wrong):
    mutant = next(mutant for mutant in ALL if mutant.id == "rope-interleaved")
    played = play(models.load("square", "f32"), RUNS[mutant.run], mutant)
    one = verdict.score(mutant, played, given)
    assert (one.is_found, one.is_named, one.is_wrong) == (is_found, is_named, is_wrong)
    assert one.is_right == (is_found and is_named and not is_wrong)


def test_a_bug_without_a_cause_needs_a_true_pattern(models):
    mutant = next(mutant for mutant in ALL if mutant.id == "rope-inner-pairs")
    played = play(models.load("square", "f32"), RUNS[mutant.run], mutant)
    assert verdict.score(mutant, played, answer(RIGHT, None, ("exact-at-position-0",))).is_named
    assert not verdict.score(mutant, played, answer(RIGHT, None, ("one-row",))).is_named


def test_a_part_that_is_not_mentioned_is_missed(models):
    mutant = next(mutant for mutant in ALL if mutant.id == "rope-theta-1e4 + glu-gelu")
    played = play(models.load("square", "f32"), RUNS[mutant.run], mutant)
    one = verdict.score(mutant, played, answer(RIGHT, "rope-theta"))
    assert one.is_found and not one.is_named
    both = answer(RIGHT, "rope-theta")
    both["findings"].append({"points": ["layer_0_mlp_intermediate"], "cause": "swiglu-gelu", "patterns": []})
    assert verdict.score(mutant, played, both).is_named


def test_a_mutant_below_the_limit_must_not_be_found(models):
    mutant = dataclasses.replace(ALL[0], parts=(Part(("logits",), lambda op: op.right, ("noise",)),))
    played = play(models.load("square", "f32"), RUNS["prefill"], mutant)
    one = verdict.score(mutant, played, answer(None, None))
    assert one.grade == "below" and one.is_right


# --- The judge ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_the_limits_are_the_judges(models, tmp_path, dtype):
    loaded = models.load("square", dtype)
    trace = write_trace(tmp_path / "clean.trace", play(loaded, RUNS["scores"]))
    for point in verdict.judge(trace, loaded.directory)["points"]:
        limits = noise.Limits.of(point["point"], loaded.model.dtype)
        found = point["limits"]
        assert (found["row"], found["head"], found["max"]) == (limits.row, limits.head, limits.value), point["name"]
        # A quarter where it is compared with what rounding every step gives.
        assert found["scale"] in (pytest.approx(limits.scale), pytest.approx(limits.scale / 4)), point["name"]


def test_the_sample_before_the_judge():
    from programs import LOCKSTEP, lockstep

    if not LOCKSTEP.exists() or lockstep("replay", "--help").returncode != 0:
        pytest.skip("the program has no replay")
    cases, mutants = run.sampled()
    results = run.run(cases, mutants, ODDITIES)
    assert results.complaints() == []
    unexplained = results.unexplained()
    assert len(unexplained) <= 0.05 * len(mutants), text(results)
    assert "| norm-eps-1e-5 |" in markdown(results, "the sample")
