"""The vision-language-action policy, its inference process and its 50 Hz node."""
