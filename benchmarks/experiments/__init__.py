"""Planned comparisons: an experiment is a YAML file, a queue of jobs that survives any stop, and a page of results.

    python -m benchmarks.experiments run acdc_few_labels --data DATA --state runs/experiments --workers 2
    python -m benchmarks.experiments status acdc_few_labels --state runs/experiments
    python -m benchmarks.experiments collect --state runs/experiments
    python -m benchmarks.tables

``protocols/NAME.yaml`` is committed before the first run: arms, data, budget, seeds, main comparisons, what is expected
and when to stop. ``run`` executes the bundle's own configs with a few ids replaced; a job that has its result is not
repeated, a stopped one goes on. ``collect`` copies the finished results into ``docs/experiments/data/NAME``;
``benchmarks.tables`` writes the tables and figures of ``docs/experiments/NAME.md`` from them.
"""
