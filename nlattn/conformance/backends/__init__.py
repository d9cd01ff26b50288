"""Whoever answers: how a backend is found, asked and watched."""
