"""What runs data: batches, statistics, ranges from them, and what can be said without data."""
