"""The zoo of mutants: planted bugs that the judge (`lockstep replay`) must explain, and correct runs to acquit.

models.py      the checkpoints: the trained tiny model, a random one 1024 wide, a loud one whose values overflow f16
runs.py        what is run: one prefill, decode, chunks, a ragged batch, a long prompt, small rows
context.py     what a mutant is, and what its wrong op is given
ops.py         the ops of Qwen3 with a knob for every way to get them wrong (plain torch: none of the judge's code)
mutants/       the mutants, one table for each op
clean.py       correct runs and correct variants ("must not be called bugs")
oddities.py    traces that are not what they claim
play.py        runs a model with a mutant in it, and writes the trace
noise.py       the effect that a mutant must have, in noise units, in float64, without the judge
verdict.py     calls the judge and scores its answer
run.py         all of it: `make zoo`
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
for path in (ROOT / "python", ROOT / "tests" / "python", ROOT / "tests"):
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
