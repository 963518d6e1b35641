"""Shared basics: errors, logs, JSON, threads, flags, versions, fault points."""
