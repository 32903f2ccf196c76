"""The paper's tables as commands: what each compares, how a row is trained and measured, and what is reported."""
