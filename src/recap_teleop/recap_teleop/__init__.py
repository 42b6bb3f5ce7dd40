"""Takeover: pedal, modes, arbiter, episode control and recorder."""
