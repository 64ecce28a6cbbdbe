"""Typed, durable, hierarchical state machines."""
