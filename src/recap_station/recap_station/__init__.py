"""The cell's contract, bags, simulator and drivers: the ground floor."""
