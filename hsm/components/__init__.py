"""Ready machines, each a package of its own."""

__all__: list[str] = []
