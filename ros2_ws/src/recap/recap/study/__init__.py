"""The study: every way to learn a policy that the paper compares, on one task, with intervals.

`policies.py` says what is compared, `settings.py` with how much data and training, `seed_run.py` makes it for
one training seed on the stages of Algorithm 1, `results.py` adds up the seeds, `figures.py` draws them.
"""
