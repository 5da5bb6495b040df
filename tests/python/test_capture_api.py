"""`lockstep.capture`: a transformers Qwen3 in every way that people call it, judged by the replay."""

import lockstep
import numpy as np
import pytest
import torch
from native import use_native
from programs import TINY
from torch import nn
from transformers import AutoModel, Qwen2Config, Qwen2Model, Qwen3ForCausalLM
from transformers.models.qwen3 import modeling_qwen3

SHORT, LONG = [7, 8, 9], [1, 2, 3, 4, 5]
PROBE = "layer_3_attn_q_rope"


@pytest.fixture(scope="module")
def model():
    use_native()
    return load()


def load(attention="eager", dtype=torch.float32):
    return Qwen3ForCausalLM.from_pretrained(TINY, attn_implementation=attention, dtype=dtype).eval()


def padded(left):
    """Ids and mask of SHORT and LONG."""
    pad, real = [0] * 2, [1] * 3
    ids = torch.tensor([pad + SHORT if left else SHORT + pad, LONG])
    return ids, torch.tensor([[0, 0, *real] if left else [*real, 0, 0], [1] * 5])


def clean(path):
    result = lockstep.replay(path, TINY)
    assert result.verdict == "clean", result
    return result


def hooks(model):
    return [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


@pytest.mark.parametrize(
    ("attention", "dtype"),
    [("eager", torch.float32), ("sdpa", torch.float32), ("eager", torch.bfloat16), ("sdpa", torch.float16)],
)
def test_generate_with_padding(tmp_path, attention, dtype):
    use_native()
    model, before = load(attention, dtype), dict(vars(modeling_qwen3))
    ids, mask = padded(left=True)
    points = "*,attn_scores,attn_probs" if attention == "eager" else None
    with lockstep.capture(model, tmp_path / "t", points=points):
        out = model.generate(ids, attention_mask=mask, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    trace = lockstep.load(tmp_path / "t")
    assert [(step.phase, len(step.positions)) for step in trace.steps] == [("prefill", 8), ("decode", 2), ("decode", 2)]
    assert trace.sequences() == [SHORT + out[0, 5:-1].tolist(), LONG + out[1, 5:-1].tolist()]
    assert trace.index("logits").tolist() == [[0, 2], [0, 3], [0, 4], [1, 4], [1, 5], [1, 6]]
    assert trace["logits"].astype(np.float32).argmax(-1).tolist() == [*out[0, 5:].tolist(), *out[1, 5:].tolist()]
    result = clean(tmp_path / "t")
    names = {op.point for op in result.points if op.verdict == "clean"}
    assert {"attn_context", "attn_q_rope", "mlp_intermediate", "layer_output", "logits"} <= names
    assert ({"attn_scores", "attn_probs"} <= names) == (attention == "eager")
    assert not hooks(model) and dict(vars(modeling_qwen3)) == before


def test_padding_on_the_right_and_a_continued_cache(model, tmp_path):
    ids, mask = padded(left=False)
    with lockstep.capture(model, tmp_path / "batch"), torch.no_grad():
        model(ids, attention_mask=mask)
    with lockstep.capture(model, tmp_path / "alone"), torch.no_grad():
        model(torch.tensor([SHORT]))
        cache = model(torch.tensor([LONG[:3]])).past_key_values
        cache = model(torch.tensor([LONG[3:4]]), past_key_values=cache).past_key_values
        model(torch.tensor([LONG[4:]]), past_key_values=cache)
    alone, batch = lockstep.load(tmp_path / "alone"), lockstep.load(tmp_path / "batch")
    assert alone.sequences() == batch.sequences() == [SHORT, LONG]
    assert [step.phase for step in alone.steps] == ["prefill", "prefill", "decode", "decode"]
    np.testing.assert_allclose(alone[PROBE], batch[PROBE], atol=1e-4)
    assert lockstep.compare(tmp_path / "alone", tmp_path / "batch", model=TINY).verdict == "same"


def test_positions_are_those_of_rope(model, tmp_path):
    ids, mask = padded(left=True)
    with lockstep.capture(model, tmp_path / "t"), torch.no_grad(), pytest.warns(UserWarning, match="padding on the"):
        model(ids, attention_mask=mask)
    assert lockstep.load(tmp_path / "t").index("logits")[:3].tolist() == [[0, 2], [0, 3], [0, 4]]
    with lockstep.capture(model, tmp_path / "t"), torch.no_grad():
        model(ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
    assert lockstep.load(tmp_path / "t").index("logits")[:3].tolist() == [[0, 0], [0, 1], [0, 2]]
    clean(tmp_path / "t")


class Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, **inputs):
        return self.inner(**inputs, logits_to_keep=torch.tensor([0, 2]))


def test_wrapped_with_embeddings_and_chosen_logits(model, tmp_path):
    embeddings = model.model.embed_tokens(torch.tensor([SHORT])).detach()
    with lockstep.capture(Wrapper(model), tmp_path / "t", points="logits,input_embeddings"), torch.no_grad():
        logits = Wrapper(model)(inputs_embeds=embeddings).logits
    trace = lockstep.load(tmp_path / "t")
    assert trace.names() == ["input_embeddings", "logits"] and trace.steps[0].input_ids.tolist() == [-1] * 3
    assert np.array_equal(trace["input_embeddings"], embeddings[0].numpy())
    assert trace.index("logits").tolist() == [[0, 0], [0, 2]] and np.array_equal(trace["logits"], logits[0].numpy())


def test_without_a_head(tmp_path):
    use_native()
    decoder = AutoModel.from_pretrained(TINY)
    with lockstep.capture(decoder, tmp_path / "t", layers="0,4"), torch.no_grad():
        decoder(torch.tensor([LONG]))
    names = lockstep.load(tmp_path / "t").names()
    assert "final_norm_output" in names and "logits" not in names and "layer_1_attn_q_rope" not in names
    clean(tmp_path / "t")


def test_another_qwen3_in_the_process_is_not_mixed_in(model, tmp_path):
    other = load()
    with lockstep.capture(model, tmp_path / "t"), torch.no_grad():
        other(torch.tensor([SHORT]))
        model(torch.tensor([LONG]))
        other(torch.tensor([SHORT]))
    assert lockstep.load(tmp_path / "t").sequences() == [LONG]
    clean(tmp_path / "t")


def test_an_exception_leaves_a_trace_that_says_so(model, tmp_path):
    with pytest.raises(KeyError), lockstep.capture(model, tmp_path / "t"), torch.no_grad():
        model(torch.tensor([LONG]))
        raise KeyError("of the user")
    assert not hooks(model)
    with pytest.warns(UserWarning, match="not closed"):
        trace = lockstep.load(tmp_path / "t")
    assert trace.sequences() == [LONG] and "KeyError" in trace.meta["errors"][0]


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_call_that_fails_is_noted(model, tmp_path, goes_on):
    def fail(*_):
        raise KeyError("in the model")

    with lockstep.capture(model, tmp_path / "t"), torch.no_grad():
        handle = model.model.layers[2].register_forward_pre_hook(fail)
        with pytest.raises(KeyError):
            model(torch.tensor([LONG]))
        handle.remove()
        if goes_on:
            model(torch.tensor([LONG]))
    assert lockstep.load(tmp_path / "t").meta["errors"] == ["step 0: the forward call did not come to its end"]


def test_refusals(model, tmp_path):
    def refused(match, *arguments, **options):
        with pytest.raises(lockstep.LockstepError, match=match), lockstep.capture(*arguments, **options):
            pass

    small = Qwen2Config(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    refused("expected one Qwen3Model of transformers.*found Qwen2Model", Qwen2Model(small), tmp_path / "t")
    refused("found str", "model", tmp_path / "t")
    refused("2 of them in ModuleList", nn.ModuleList([model, load()]), tmp_path / "t")
    refused('need attn_implementation="eager", found "sdpa"', load("sdpa"), tmp_path / "t", points="attn_scores")
    refused("float64", load(dtype=torch.float64), tmp_path / "t")
    assert not (tmp_path / "t").exists()
    (tmp_path / "file").touch()
    refused("cannot make a trace directory", model, tmp_path / "file" / "t")
    with lockstep.capture(model, tmp_path / "t"):
        refused("running already", model, tmp_path / "u")
    assert not (tmp_path / "u").exists() and not hooks(model)


def test_calls_that_cannot_be_told_apart(model, tmp_path):
    with lockstep.capture(model, tmp_path / "t"), torch.no_grad():
        with pytest.raises(lockstep.LockstepError, match="packed"):
            model(torch.tensor([LONG]), position_ids=torch.tensor([[0, 1, 0, 1, 2]]))
        with pytest.raises(lockstep.LockstepError, match="two-dimensional mask"):
            model(torch.tensor([LONG]), attention_mask=torch.zeros(1, 1, 5, 5))
