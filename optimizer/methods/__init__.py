"""What there is to prune, to quantize and to run a model with: one entry a method, which knows all about it.

An entry names the code of its method and does not import it, so that pages, charts and command line read the
registries without torch. ``PRUNERS``, ``QUANTIZERS`` and ``ENGINES`` are plain dicts by name.
"""

from optimizer.methods import plugins

plugins.add_installed()
