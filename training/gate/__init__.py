"""The gate: a candidate serves only if it is better than what serves, and forgot nothing.

`gate.py` judges by the rules of `rules.py` and `verdict.py`; `detections.py` lets checkpoints look at pictures,
`holdout.py` is what they are measured on, `bootstrap.py` the comparison, `precision.py` what bf16 costs; `report.py` is
for people.
"""

from training.gate.gate import judge
from training.gate.verdict import GateRules, Verdict

__all__ = ["GateRules", "Verdict", "judge"]
