"""A server for embeddings, zero-shot classification and search, which existing clients know.

    from pocketclip.serve import ServerSettings, serve

    serve("phone/", library="photos", settings=ServerSettings(port=8080))

It needs the extra `serve`, and no torch.

| module | holds |
|---|---|
| `server` | `serve`: the whole in one call |
| `opening` | the model as a bundle, the library and the label sets |
| `process`, `ports` | ports on one event loop, signals, another model, and the end |
| `connection_guard`, `protocol` | connections with time-outs |
| `logs` | the log, without contents |
| `app` | the apps: `create_app` |
| `settings` | `ServerSettings` and `Limits`, which check themselves |
| `engine` | the model: a worker and a bounded queue per tower |
| `admission` | limits, time-outs and deadlines of requests |
| `access` | who is answered: keys, sessions, hosts and origins |
| `photo_library` | the library: searches, photographs and thumbnails, in threads |
| `routes` | the protocols: OpenAI, Hugging Face, immich, clip-retrieval, our own |
| `errors` | errors as answers |
"""

from pocketclip.serve.server import serve
from pocketclip.serve.settings import Limits, ServerSettings

__all__ = ["Limits", "ServerSettings", "serve"]
