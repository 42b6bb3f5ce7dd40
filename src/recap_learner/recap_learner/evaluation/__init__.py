"""How well a policy does, with intervals, and whether one is better than another."""
