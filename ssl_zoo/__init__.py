"""ssl_zoo: self-supervised vision pretraining on PyTorch Lightning."""

__version__ = "0.1.0"
