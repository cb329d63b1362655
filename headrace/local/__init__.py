"""The whole system on one machine, from one command: broker, Triton, router and gateway as supervised child processes.

Every part is the real one. Imports `headrace.runtime`, and what its calls and downloads need: aiohttp, numpy,
tritonclient, jgo and requests. Never `gateway` or `router`, which it starts as processes. Start reading at `stack`.
"""
