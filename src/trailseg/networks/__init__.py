"""The networks: one table of rows over one recurrence, and the parts it is built from."""
