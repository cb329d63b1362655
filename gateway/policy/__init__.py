"""What each tenant may call, see and use: the policy, as data and as a file.

`model` is the policy itself, pure: tenants, the models and methods that they are granted, and their limits. `document`
reads it from YAML, with the line of every mistake. Where limits are counted is `gateway.admission`'s business. Imports
`gateway.identity` for who a caller is. Start reading at `model`.
"""
