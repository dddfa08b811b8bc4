"""The only room that talks to a model server: messages to raw answers."""
