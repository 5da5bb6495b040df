"""Fingerprints of weights: the hash of docs/trace-format.md, "Weight fingerprints".

The hash is a sum of products modulo 2^64. Signed int64 arithmetic in torch wraps the same way, so the bits agree with
unsigned arithmetic in any language, in any order of summation.
"""

from typing import TYPE_CHECKING

from lockstep.errors import LockstepError

if TYPE_CHECKING:
    import torch

# Elements a chunk. Below torch's parallel grain (1 << 15) on purpose: one core does 600M elements in 1 to 2 seconds,
# while thousands of tiny parallel regions on a busy machine were up to a hundred times slower.
_CHUNK = 1 << 14
_ROW_BASE = 1 << 32
_STORED_AS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def fingerprint(tensor: "torch.Tensor", dtype: str | None = None) -> dict:
    """{dtype, shape, hash} of a weight in checkpoint orientation, [N, K] or [K], in f32, bf16 or f16, of any strides.

    `dtype` names the storage where it is not the tensor's own ("BF16" for a weight that was widened to f32).
    Raises LockstepError for other shapes and dtypes.
    """
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in _STORED_AS:
        raise LockstepError(f"fingerprint: expected a float32, bfloat16 or float16 weight, found {name}")
    if tensor.dim() not in (1, 2):
        raise LockstepError(f"fingerprint: expected a matrix or a vector, found shape {list(tensor.shape)}")
    total = _hash(tensor.detach().reshape(1, -1) if tensor.dim() == 1 else tensor.detach())
    return {"dtype": dtype or _STORED_AS[name], "shape": list(tensor.shape), "hash": f"{total:016x}"}


def _hash(matrix: "torch.Tensor") -> int:
    """Hash of `matrix` [N, K] as an unsigned 64-bit integer."""
    import torch

    rows, columns = matrix.shape
    if not rows or not columns:
        return 0
    column_factors = _factors(0, columns, matrix.device)
    row_factors = _factors(_ROW_BASE, rows, matrix.device)
    row_sums = torch.zeros(rows, dtype=torch.int64, device=matrix.device)
    width = min(columns, _CHUNK)
    height = max(1, _CHUNK // width)
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            bits = _bits(matrix[top : top + height, left : left + width])
            row_sums[top : top + height] += bits.mul_(column_factors[left : left + width]).sum(1)
    total = int((row_sums * row_factors).sum().item())
    # bf16 bits were summed unshifted; multiplying the sum by 2^16 is the same modulo 2^64.
    return (total << (16 if matrix.dtype == torch.bfloat16 else 0)) % (1 << 64)


def _bits(chunk: "torch.Tensor") -> "torch.Tensor":
    """The float32 bits of `chunk` as unsigned values in int64; of bf16 only the upper 16, which are all it has."""
    import torch

    if chunk.dtype == torch.bfloat16:
        return chunk.contiguous().view(torch.int16).to(torch.int64).bitwise_and_(0xFFFF)
    return chunk.to(torch.float32).contiguous().view(torch.int32).to(torch.int64).bitwise_and_(0xFFFFFFFF)


def _factors(start: int, count: int, device: "torch.device") -> "torch.Tensor":
    """m(start) ... m(start + count - 1), int64 [count], where m(k) = splitmix64(k) | 1."""
    import torch

    z = torch.arange(start, start + count, dtype=torch.int64, device=device)
    z += _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * _signed(0x94D049BB133111EB)
    return (z ^ _shift_right(z, 31)) | 1


def _shift_right(z: "torch.Tensor", count: int) -> "torch.Tensor":
    """Logical shift: torch's own shift copies the sign down."""
    return (z >> count) & ((1 << (64 - count)) - 1)


def _signed(value: int) -> int:
    """The int64 with the bits of the uint64 `value`."""
    return value - (1 << 64) if value >> 63 else value
