"""The commands that people run beside the workers: status, plan, parity, report."""
