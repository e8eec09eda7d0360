"""The schemes of the SC'23 paper under its own names, to compare with: what each of them would run here.

clover           simulated annealing over the configuration graph of the fleet
clover-artifact  the same as the public artifact does it, **its fault included** (`walk` says which)
blover           random search over layouts and variants
co2opt           the first-listed (least accurate) variant on the smallest slices everywhere
oracle           the best f with load and intensity known, devices free
oracle:alike     the same, all devices of a kind alike

**From the paper** (arXiv 2304.09781): the objective f = L dCarbon - (1 - L) dAccuracy subject to p95 <= SLA; the graph
of variants and slice types and its edit distance; the annealing; the names and what BASE, CO2OPT, BLOVER and ORACLE
are; FIFO to any idle worker.  **From the public artifact**, as far as the paper's text does not say: the distance
of 4, temperatures (100 to 10 by 5), K = 1e-4, 5 configurations without a better one or 10 new ones (20 in another of
its versions), and that a search begins at what runs.  From it alone, and in `clover-artifact` alone: every GPU alike,
neighbours by drawing from the raw space up to 400 times, the score times SLA / p95, L = 0.1 if none is configured.

**Ours**, in all of them:

 - Configurations are tried on the planner's model, not on live traffic, and no hour remembers another.
 - C_base is BASE's energy at the reference intensity, as in `planning.model.objective`: 250 g/kWh unless configured,
   active energy only.  f has the paper's form whatever form is configured; without a configured L it is the derived
   one.
 - Shares follow from the configuration (`fifo`), and are dealt by our router.  What is predicted is what that does.
 - The limit on utilisation counts as part of the latency target: above it the model's p95 says little.
 - The paper knows no accuracy floor.  A plan below it is proposed all the same and marked infeasible, and so is one
   that misses the latency target.  The bound leaves the floor out.
 - In `clover` and `blover` each device is free, and a broken latency target always lowers the score in `clover`.
"""
