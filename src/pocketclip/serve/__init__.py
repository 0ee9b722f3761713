"""A server for embeddings, zero-shot classification and search, which existing clients know.

    from pocketclip.serve import ServerSettings, serve

    serve("phone/", library="photos", settings=ServerSettings(port=8080))

It needs the extra `serve`, and no torch.

| module | holds |
|---|---|
| `server` | `serve`: the whole in one call |
| `settings` | `ServerSettings` and `Limits`, which check themselves |
| `app` `openapi` | the apps: `create_app`; their documents |
| `services` | what the routes work with |
| `errors` `schema` `origins` | errors as answers; what documents share; hosts and origins |
| `addresses` | the names and addresses of this machine, and those that a phone can open |
| `process/` | ports on one event loop, TLS, time-outs of connections, signals, reloading, the end |
| `routes/` | the protocols: OpenAI, Hugging Face, immich, clip-retrieval, our own |
| `photos/` | the library: searches, photographs and thumbnails, in threads |
| `encoding/` | the model: a worker and a bounded queue per tower |
| `middleware/` | who is answered; limits, time-outs and deadlines of requests |
| `inputs/` | bodies, forms, texts and images of requests |
| `monitoring/` | the log, without contents; the metrics |
"""

from pocketclip.serve.server import serve
from pocketclip.serve.settings import Limits, ServerSettings

__all__ = ["Limits", "ServerSettings", "serve"]
