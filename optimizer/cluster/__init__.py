"""Sweeps measured on other machines."""
