"""Our messages in the words of other front-end protocols, as Server-Sent Events."""
