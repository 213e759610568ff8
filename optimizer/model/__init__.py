"""Where models come from, which there are, and the one walk over their layers."""
