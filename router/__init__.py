"""Process 2: log in, Triton out. The window, the offsets, the model server's client, what this router announces.

Imports `headrace.bus` and `headrace.runtime`, never `gateway`. Start reading at `app`, then `intake` for the call path.
"""
