"""The whole system on one machine, from one command: broker, Triton, router and gateway as supervised child processes.

Every part is the real one. Imports `headrace.runtime` and the standard library; never `gateway` or `router`, which it
starts as processes. Start reading at `stack`.
"""
