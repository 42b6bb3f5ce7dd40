"""A store as other tools read it, and their data as a store."""
