"""One training loop, what it trains, on how many machines, and what it takes."""
