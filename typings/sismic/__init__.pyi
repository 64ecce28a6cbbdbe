# The part of sismic that the benchmarks use; sismic has no types of its own.
