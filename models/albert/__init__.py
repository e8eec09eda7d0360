"""ALBERT: a question and a text in, the part of the text that answers it out.  See README.md in this folder."""
