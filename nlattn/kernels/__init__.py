"""Compiled loops, one file per mechanism: inputs first, results last, no checks."""
