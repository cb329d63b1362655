"""Measures Headrace against its peers, all on one machine, in turns.

Start reading at `__main__` (the command), then `rounds` (what is measured and in which order). `peers/` has one module
per peer: how to start it and which of its processes count. `load` drives a load generator in a process of its own
(`loader`), `cpu` reads what the others burned meanwhile, `report` makes tables of it. `soak` watches memory, `hotspots`
says where the time goes.

Imports `headrace.local`, and the processes' settings for the limits that they state; everything else is talked to over
the wire. Nothing imports this package.
"""
