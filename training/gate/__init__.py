"""The gate: a candidate serves only if it is better than what serves, and forgot nothing.

`judging.py` runs it; `rules.py` are its settings and `ruling.py` applies them; `findings.py` lets checkpoints look at
pictures, `holdout.py` is what they are measured on, `comparing.py` the paired bootstrap; `verdict.py`, `report.py`,
`bars.py` and `before_after.py` tell people.
"""

from training.gate.gate import judge
from training.gate.rules import GateRules
from training.gate.verdict import Verdict

__all__ = ["GateRules", "Verdict", "judge"]
