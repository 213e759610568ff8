"""Paretoscope: how far can a model be pruned and quantized, and what does it buy on this machine?"""

__version__ = "0.1.0"
