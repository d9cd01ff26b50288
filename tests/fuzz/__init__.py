"""Readers of files of others, driven by damaged files."""
