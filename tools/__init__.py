"""The workbench: everything that sets the pack up, runs it and measures it, for people who work on it."""
