"""The endpoints beside inference: routes, metadata, and the OpenAPI document."""
