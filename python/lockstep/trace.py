"""Traces: writer, reader and selection of docs/trace-format.md.

A step file is a safetensors file that stays valid while it grows. Its header region is reserved in front, as blanks
that end in the closing brace; a tensor's data is appended first, and only then is its header entry written over blanks,
by one write inside one 4 KiB page. Rewriting the whole header is simpler and was rejected: it is not atomic, and a kill
tears it. The cost is HEADER_BYTES a step file.

The reader believes nothing: it checks every offset, shape, dtype and name before it maps a byte.
"""

from lockstep.selection import Selection, matches
from lockstep.trace_layout import FORMAT, VERSION, is_trace_file
from lockstep.trace_reader import RankStep, Step, Tensor, Trace, load
from lockstep.trace_step_file import HEADER_BYTES, PAGE
from lockstep.trace_writer import StepWriter, TraceWriter, check_replaceable, claim

__all__ = [
    "FORMAT",
    "HEADER_BYTES",
    "PAGE",
    "VERSION",
    "RankStep",
    "Selection",
    "Step",
    "StepWriter",
    "Tensor",
    "Trace",
    "TraceWriter",
    "check_replaceable",
    "claim",
    "is_trace_file",
    "load",
    "matches",
]
