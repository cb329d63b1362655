"""The Open Inference Protocol over REST: how its bodies become the protocol's messages, and messages become bodies.

Envoy has the HTTP port. It hands bodies on unread, so what stands here is all that knows of JSON. It follows Triton's
own HTTP port: clients of that one work unchanged, and its binary tensors are understood.

Start with `service`, which answers each call by the gRPC method that has its name. `infer` reads requests and writes
answers, `tensors` has the values in them, `documents` what is told of server and models. These three are pure: bytes
and messages in, bytes out, or a refusal.
"""
