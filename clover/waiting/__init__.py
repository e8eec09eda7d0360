"""Work that may wait: batch jobs whose rows run in the clean hours before their deadlines."""
