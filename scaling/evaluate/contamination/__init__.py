"""Items of tasks in a training corpus."""
