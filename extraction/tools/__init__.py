"""What people run beside the workers: status, plan, parity, report."""
