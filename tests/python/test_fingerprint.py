"""The fingerprint against a slow twin in plain integers."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lockstep import LockstepError
from lockstep import fingerprint as module
from lockstep.fingerprint import fingerprint

MASK = (1 << 64) - 1


def splitmix64(k: int) -> int:
    z = (k + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK
    return z ^ z >> 31


def slow_hash(matrix: list[list[float]]) -> str:
    """The definition, one element at a time."""
    total = 0
    for i, row in enumerate(matrix):
        bits = (struct.unpack("<I", struct.pack("<f", value))[0] for value in row)
        inner = sum((splitmix64(j) | 1) * b for j, b in enumerate(bits))
        total += (splitmix64(i + (1 << 32)) | 1) * inner
    return f"{total & MASK:016x}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@settings(max_examples=30, deadline=None)
@given(rows=st.integers(0, 9), columns=st.integers(0, 9), seed=st.integers(0, 1000), chunk=st.integers(1, 20))
def test_fast_is_slow(dtype, rows, columns, seed, chunk):
    """Every split into chunks gives the defined hash, of negative numbers too."""
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)
    before, module._CHUNK = module._CHUNK, chunk
    try:
        found = fingerprint(matrix)
    finally:
        module._CHUNK = before
    assert found["hash"] == slow_hash(matrix.float().tolist())
    assert found["shape"] == [rows, columns]


def test_known_value():
    """Pins the constants; other languages can test against it."""
    assert fingerprint(torch.tensor([[1.0, -2.0], [0.5, 0.0]]))["hash"] == slow_hash([[1.0, -2.0], [0.5, 0.0]])
    assert fingerprint(torch.tensor([1.0]))["hash"] == "069ff78044800000"
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # the published first output for seed 0


def test_large_and_strided():
    """A whole chunk and an odd rest, of a transposed view, against numpy's unsigned arithmetic."""
    matrix = torch.randn(257, 1031).T
    assert not matrix.is_contiguous()
    bits = matrix.contiguous().numpy().view(np.uint32).astype(np.uint64)
    factors = [
        np.array([splitmix64(base + k) | 1 for k in range(n)], np.uint64) for base, n in ((0, 257), (1 << 32, 1031))
    ]
    expected = int((((bits * factors[0]).sum(1)) * factors[1]).sum())
    assert fingerprint(matrix)["hash"] == f"{expected:016x}"
    assert fingerprint(matrix)["hash"] != fingerprint(matrix.T)["hash"]


def test_a_vector_is_one_row_and_widening_keeps_the_hash():
    vector = torch.randn(100).to(torch.bfloat16)
    assert fingerprint(vector) == {**fingerprint(vector[None]), "shape": [100]}
    assert fingerprint(vector.float(), dtype="BF16") == fingerprint(vector)
    assert fingerprint(vector.float())["dtype"] == "F32"


def test_one_changed_element_changes_it():
    matrix = torch.randn(40, 50)
    other = matrix.clone()
    other[7, 9] = -other[7, 9]
    assert fingerprint(matrix)["hash"] != fingerprint(other)["hash"]


def test_the_tensor_stays_as_it_was():
    matrix = torch.nn.Parameter(torch.randn(4, 5))
    before = matrix.detach().clone()
    fingerprint(matrix)
    assert torch.equal(matrix, before)


@pytest.mark.parametrize("bad", [torch.zeros(2, 2, dtype=torch.int32), torch.zeros(2, 2, 2), torch.zeros(())])
def test_refuses(bad):
    with pytest.raises(LockstepError, match="expected"):
        fingerprint(bad)
