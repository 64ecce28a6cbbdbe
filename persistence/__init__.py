"""Storage: a small contract over many databases, and the record layers above it."""
