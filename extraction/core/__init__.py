"""What everything else uses: errors, logs, JSON, threads, flags, versions, fault points."""
