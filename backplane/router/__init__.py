"""The callback-router: moves what the AES pushes into session logs."""
