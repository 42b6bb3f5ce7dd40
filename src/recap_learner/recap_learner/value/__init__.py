"""The distributional value function, and what follows from it: advantages, thresholds, labels."""
