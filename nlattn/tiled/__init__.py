"""Runs beyond memory and beyond one machine: tiles as tasks, with the bits of a whole run."""
