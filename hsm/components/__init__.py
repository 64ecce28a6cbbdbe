"""Ready machines."""
