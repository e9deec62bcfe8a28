"""The append-only account of what nodes contributed."""
