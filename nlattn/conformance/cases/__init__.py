"""What backends are asked: calls of operators, with their arrays."""
