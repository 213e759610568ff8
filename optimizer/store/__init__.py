"""Results on the disk, and the keys they are found by."""
