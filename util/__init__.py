"""What every other package stands on: the contract, files, metrics, evaluation, checkpoints, reports."""

__version__ = "0.2.0"
