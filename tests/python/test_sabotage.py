"""Planted faults that the comparison must name: a wrong op, and traces that are not what they claim."""

import json
import shutil

import numpy as np
import pytest
from c_api import Model, Tensor
from lockstep.trace import TraceWriter, load
from programs import TINY, lockstep
from runs import compare, prompt, run_engine, run_reference

VOCAB = 2048
LENGTHS = [17, 300]


@pytest.fixture(scope="module", params=LENGTHS)
def traces(request, tmp_path_factory):
    """The prompt's length, the reference's trace and the engine's."""
    directory = tmp_path_factory.mktemp("traces")
    reference = run_reference(TINY, directory / "py.trace", "--tokens", prompt(request.param, VOCAB))
    return request.param, reference, run_engine(TINY, directory / "cpp.trace", "--from", reference)


@pytest.mark.parametrize("layer, point, axes", [(2, "attn_q_rope", "head"), (1, "mlp_down_proj", "token")])
def test_a_replaced_tensor_is_the_first_difference(traces, tmp_path, layer, point, axes):
    length, reference, _ = traces
    seen = []

    def sabotage(tensor: Tensor) -> None:
        seen.append(tensor.name.decode())
        if tensor.layer == layer:
            row = tensor.array()[length // 2]
            if axes == "head":
                row = row[1]  # one head of one token
            row *= -1

    with Model(TINY) as model:
        model.set_tap(sabotage, point)
        model.set_debug(tmp_path / "bad.trace")
        model.forward([int(i) for i in prompt(length, VOCAB).split(",")], VOCAB)
        model.set_debug(None)
    assert seen == [f"layer_{i}_{point}" for i in range(len(seen))] and len(seen) > 2

    name = f"layer_{layer}_{point}"
    code, result = compare(reference, tmp_path / "bad.trace", tmp_path / "result.json")
    assert code == 1
    assert result["first_significant"] == result["first_failing"] == name
    found = next(p for p in result["points"] if p["name"] == name)
    assert found["worst"]["element"]["position"] == length // 2
    assert found["worst"]["element"].get("head", -1) == (1 if axes == "head" else -1)
    before = result["points"][: [p["name"] for p in result["points"]].index(name)]
    assert all(p["class"] in ("EXCELLENT", "GOOD", "ACCEPTABLE") for p in before)

    text = lockstep("compare", reference, tmp_path / "bad.trace").stdout
    assert f"FIRST MAJOR DIFFERENCE DETECTED AT LAYER {layer}" in text and name in text


def rewrite(source, out, change) -> None:
    """Copies a trace tensor by tensor; `change(name, array, tensors)` gives an array, a list of them, or None."""
    trace = load(source)
    meta = trace.meta
    with TraceWriter(
        out,
        producer=meta["producer"]["name"],
        config=meta["model"]["config"],
        storage=meta["arithmetic"]["storage"],
        points=meta["points"],
    ) as writer:
        for step in trace.steps:
            with writer.begin_step(step.input_ids, step.positions, step.sequences, step.phase) as copy:
                for name, tensor in step.tensors.items():
                    rows = tensor.rows if tensor.shape[0] != len(step.positions) or name == "next_token" else None
                    changed = change(name, tensor.numpy(), step.tensors)
                    if changed is not None:
                        copy.record(name, changed, rows=rows)


POINT = "layer_2_attn_context"
FAULTS = {
    "missing": lambda name, array, tensors: None if name == POINT else array,
    "all-zero": lambda name, array, tensors: np.zeros_like(array) if name == POINT else array,
    "same-as-layer": lambda name, array, tensors: tensors["layer_1_attn_context"].numpy() if name == POINT else array,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_point_that_is_not_what_it_claims_fails_by_name(traces, tmp_path, fault):
    _, reference, candidate = traces
    rewrite(candidate, tmp_path / "bad.trace", FAULTS[fault])
    code, result = compare(reference, tmp_path / "bad.trace", tmp_path / "result.json")
    assert code == 1
    assert (fault, POINT) in {(failure["kind"], failure["point"]) for failure in result["failures"]}, result["failures"]
    assert all(failure["point"] == POINT for failure in result["failures"])
    assert POINT in lockstep("compare", reference, tmp_path / "bad.trace").stdout


def test_a_copied_trace_has_no_fault(traces, tmp_path):
    _, reference, candidate = traces
    rewrite(candidate, tmp_path / "copy.trace", lambda name, array, tensors: array)
    code, result = compare(reference, tmp_path / "copy.trace", tmp_path / "result.json")
    assert code == 0 and result["failures"] == []


def test_a_point_recorded_twice_fails_by_name(traces, tmp_path):
    """Twice in one step, the second time in a continuation file."""
    _, reference, candidate = traces
    bad = tmp_path / "bad.trace"
    shutil.copytree(candidate, bad)
    second = tmp_path / "second.trace"
    rewrite(candidate, second, lambda name, array, tensors: array if name == POINT else None)
    shutil.copy(second / "step-000000.safetensors", bad / "step-000000.1.safetensors")
    meta = json.loads((bad / "trace.json").read_text())
    meta["steps"][0]["files"].append({"file": "step-000000.1.safetensors", "rank": 0})
    (bad / "trace.json").write_text(json.dumps(meta))
    code, result = compare(reference, bad, tmp_path / "result.json")
    assert code == 1
    assert ("duplicate", POINT) in {(failure["kind"], failure["point"]) for failure in result["failures"]}


def test_the_writer_says_that_it_recorded_twice(traces, tmp_path):
    _, reference, candidate = traces
    from lockstep import LockstepError

    with pytest.raises(LockstepError, match=POINT):
        trace = load(candidate)
        with TraceWriter(tmp_path / "bad.trace", producer="x", config=trace.meta["model"]["config"]) as writer:
            step = trace.steps[0]
            with writer.begin_step(step.input_ids, step.positions, step.sequences, step.phase) as copy:
                copy.record(POINT, step.tensors[POINT].numpy())
                copy.record(POINT, step.tensors[POINT].numpy())
    code, result = compare(reference, tmp_path / "bad.trace", tmp_path / "result.json")
    assert code == 1
    assert any(failure["kind"] == "trace-error" and POINT in failure["text"] for failure in result["failures"])


def test_a_point_of_ones_own_is_compared(traces, tmp_path):
    """A name that is not in the table, here made by renaming one of the table's to another of the same length."""
    known, own = "layer_1_mlp_gate_proj", "layer_1_my_own_tensor"
    _, _, candidate = traces

    def renamed(out, scale):
        rewrite(candidate, out, lambda name, array, tensors: array * np.float32(scale) if name == known else array)
        for path in [*out.glob("step-*.safetensors"), out / "trace.json"]:
            path.write_bytes(path.read_bytes().replace(f'"{known}"'.encode(), f'"{own}"'.encode()))
        return out

    code, result = compare(renamed(tmp_path / "a.trace", 1), renamed(tmp_path / "b.trace", 3), tmp_path / "result.json")
    assert code == 1
    assert result["first_failing"] == own
