"""Process 3: the usage topic in, the database out. Sums what gateways and routers report, exactly once.

Imports `headrace.bus`, `headrace.store` and `headrace.runtime`, never `gateway` or `router`. Start reading at `app`.
"""
