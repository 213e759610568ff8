"""One request measured: accuracy, size, latency, throughput, and where the time goes."""
