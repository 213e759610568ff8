"""A user's own model files: read in a limited process, checked, and kept in the data folder."""
