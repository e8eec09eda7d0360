"""D-FINE: photographs in, boxes of things out.  See README.md in this folder."""
