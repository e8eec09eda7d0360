"""EfficientNet-Lite0 to Lite2 of timm: photographs in, names out.  See README.md in this folder."""
