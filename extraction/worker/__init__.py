"""One worker: flags, plan, loop, uploads, claims, shutdown, progress."""
