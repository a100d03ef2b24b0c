"""The parts of `likely.train`: budget, checkpoint, pace and progress."""
