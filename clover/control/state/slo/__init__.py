"""The SLO of one family: how it was held, what follows from a miss, and whether rows may wait for fuller batches."""
