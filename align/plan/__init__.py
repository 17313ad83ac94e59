"""What a run needs before it runs: parameters, FLOPs, memory, time, cost; and predictions against measurements."""
