"""The gate: a candidate serves only if it is better than what serves, and forgot nothing.

`gate.py` judges by the rules of `verdict.py`; `holdout.py` is what checkpoints are measured on.
"""

from training.gate.gate import judge
from training.gate.verdict import GateRules, Verdict

__all__ = ["GateRules", "Verdict", "judge"]
