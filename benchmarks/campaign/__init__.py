"""What `benchmarks/faults.py` is made of: mutated inputs with their witnesses, trials of them, kills of commands."""
