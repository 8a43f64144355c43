"""Models behind HTTP: an interface like OpenAI's, a page to talk with a model, and one to rank answers."""
