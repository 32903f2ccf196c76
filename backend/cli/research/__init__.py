"""Commands of people who measure: the paper's tables, cost and precision."""
