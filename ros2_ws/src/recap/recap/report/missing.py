"""What parts of the report raise where the run does not hold what they would show."""


class Missing(Exception):
    """Something that the report would show is not there. One line that says what."""
