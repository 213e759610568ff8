"""Images: folders, classes, which are taken for what, and reading them."""
