"""Whole experiments out of the same commands that users type: the quickstart and the evidence."""
