"""Who is answered, and within which limits: pure ASGI middlewares and what they count."""
