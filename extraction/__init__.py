"""Activation extraction for preemptible workers: the library behind the commands at the top level."""
