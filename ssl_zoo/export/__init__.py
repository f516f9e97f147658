"""Encoders as files that any program can read, one format for each ending."""

from ssl_zoo.export.formats import class_name, fingerprint, save_encoder, unwrapped

__all__ = ["class_name", "fingerprint", "save_encoder", "unwrapped"]
