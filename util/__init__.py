"""What every other package stands on: the contract, files, metrics, evaluation, checkpoints, reports."""
