"""From messages in bags to ticks of labelled episodes in a store, and from there to training batches."""
