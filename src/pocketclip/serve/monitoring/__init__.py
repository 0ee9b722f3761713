"""What became of each request: counts, times and log lines, never contents."""
