"""Arrays of files, read without trust."""
