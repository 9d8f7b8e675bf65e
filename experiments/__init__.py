"""The studies: from a config to an answer. Commands are run as `python -m experiments.NAME`."""
