"""In which of 60 languages a sentence is written, in four variants of size.  See README.md in this folder."""
