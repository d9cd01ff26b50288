"""Verdicts: size of errors, behaviour, searches, and what explains a failure."""
