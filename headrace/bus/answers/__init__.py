"""The answers' way home: one gRPC stream from every router to every gateway.

`hub` is the gateway's end, `links` the router's, `wire` what both must do alike. Both ends are written against
`headrace.bus.protocols`, so that other carriers can come later.
"""
