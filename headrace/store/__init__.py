"""The database: tenants, keys, and what was used. Start with `schema`; `engine` says how it is reached."""
