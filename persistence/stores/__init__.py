"""The backends, one module or package each; none is imported before it is used."""

__all__: list[str] = []
