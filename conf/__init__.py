"""Hydra's configuration files; see patchcore/config.py for the schemas that they start from."""
