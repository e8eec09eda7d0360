"""The text of a picture of one line, by PP-OCR in two versions and at several widths.  See README.md in this folder."""
