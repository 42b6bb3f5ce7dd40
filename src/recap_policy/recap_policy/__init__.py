"""The vision-language-action policy, its sampler, its inference process and the 50 Hz policy node."""
