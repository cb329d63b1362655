"""Process 1: gRPC in, log out. Identity, waiting calls, the live registry, the status that a caller sees.

Imports `headrace.bus` and `headrace.runtime`, never `router`. Start reading at `app`, then `infer` for the call path.
"""
