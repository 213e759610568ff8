"""This machine: what it is, where files lie, which processes work, and whose turn it is to time something."""
