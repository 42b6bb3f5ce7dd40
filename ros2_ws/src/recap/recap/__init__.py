"""The top floor: command line, bring-up, demo and configuration."""
