"""Training and measuring the promptable network: views, simulated clicks, the loop, the yardsticks."""
