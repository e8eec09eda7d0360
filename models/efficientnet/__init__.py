"""EfficientNet B0 to B7 of torchvision: photographs in, names out.  See README.md in this folder."""
