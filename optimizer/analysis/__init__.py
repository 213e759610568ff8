"""What measurements say: statistics, metrics, summaries and sentences. No torch."""
