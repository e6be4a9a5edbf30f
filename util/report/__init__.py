"""From scores to what people look at: tables, tests, figures, one page. `python -m util.report RUNS... --out DIR`."""
