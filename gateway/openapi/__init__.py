"""The OpenAPI document of what a pod answers over HTTP, made from what the endpoints go by."""
