"""A fitted model behind HTTP: a page to drop an image on, and a JSON endpoint."""
