"""`pocketclip serve`: a model, and a library, behind HTTP."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketclip.cli import output
from pocketclip.cli._options import AcceptLicence, Backend, Offline, Threads
from pocketclip.errors import ConfigError

if TYPE_CHECKING:
    from pocketclip.serve.process.certificate import Certificate
    from pocketclip.serve.process.lifecycle import Running

_KEY = "POCKETCLIP_API_KEY"


def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A bundle, model name, checkpoint, weight file or hub id; what is no bundle is "
            "converted once.  [default: the library's]",
        ),
    ] = None,
    library: Annotated[
        str | None,
        typer.Option(
            "--library",
            "-l",
            metavar="NAME|FILE",
            help="A library to search in: a name, or a path that ends in .sqlite.  [default: none]",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0 or :: for all of this machine.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port; 0 for a free one, which is printed.")
    ] = 8080,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="The key that requests must send. Other users of this machine see it in the list "
            f"of processes: prefer --api-key-file, or the variable {_KEY}.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A file with the key, readable by you alone."),
    ] = None,
    no_auth: Annotated[
        bool,
        typer.Option("--no-auth", help="Answer everybody, also on an address that others reach."),
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name that the server is called by, beside localhost and IP addresses; may be "
            "repeated.",
        ),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="A web site whose pages may call the server, such as https://example.org; may be "
            "repeated.",
        ),
    ] = None,
    tls: Annotated[
        bool,
        typer.Option(
            "--tls",
            help="HTTPS with a certificate that the server makes and keeps, for this machine's "
            "names and addresses. Phones let pages use the camera only over HTTPS.",
        ),
    ] = False,
    cert: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="For HTTPS: the certificate with its chain, in PEM."),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The key of --cert, in PEM.")
    ] = None,
    immich: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:]PORT",
            help="Also be immich's machine-learning service, on a port of its own and without a "
            "key.",
        ),
    ] = None,
    upstream: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="With --immich: the service that gets its requests for faces and for texts in "
            "pictures.",
        ),
    ] = None,
    label_set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE",
            help="A label set of `pocketclip fit`, which requests take by its name; may be "
            "repeated.  [default name: the file's, without suffix]",
        ),
    ] = None,
    web_model: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="BUNDLE",
            help="A further ONNX bundle that browsers may run themselves, such as the same model "
            "in int8 for phones; may be repeated.",
        ),
    ] = None,
    webgpu_runtime: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="What browsers need for WebGPU: the folder dist of the npm package "
            "onnxruntime-web.",
        ),
    ] = None,
    fetch_from: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="Fetch images of requests from this host, over https; may be repeated.  "
            "[default: no URL is fetched]",
        ),
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="The longest time for a request.  [default: 60]"),
    ] = None,
    drain: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="How long running requests may take to finish at the end.  [default: 30]",
        ),
    ] = None,
    accept_license: AcceptLicence = False,
    backend: Backend = "auto",
    threads: Threads = None,
    offline: Offline = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the addresses and the model as a line of JSON.")
    ] = False,
) -> None:
    """Serve embeddings, classification and search over HTTP, to clients that exist already.

    Speaks the protocols of OpenAI (/v1/embeddings), Hugging Face (/hf/zero-shot), clip-retrieval
    (/knn-service) and immich (--immich), and its own: /classify, /search, /photos, /info.
    /openapi.json describes them. The log goes to standard error, one JSON object per line.

    SIGTERM and Ctrl-C finish what runs, then end it. SIGHUP reads the bundle at its place again.
    The exit code is 0, or 130 after Ctrl-C.

    \b
    pocketclip serve mobileclip2-s0
    pocketclip serve clip/ --host 0.0.0.0 --tls --api-key-file key.txt
    pocketclip serve phone/ --library photos --label-set shelf.json
    pocketclip serve --library photos --host 0.0.0.0 --api-key-file key.txt --cert c.pem --key k.pem
    pocketclip serve phone/ --web-model phone-int8/ --web-model phone-fp16/
    pocketclip serve clip/ --immich 0.0.0.0:3003 --upstream http://immich-ml:3003
    """
    from pocketclip.serve import Limits, ServerSettings
    from pocketclip.serve import serve as run
    from pocketclip.serve.server import AT_ONCE
    from pocketclip.serve.settings_checks import parse_address, parse_host, parse_label_sets

    times: dict[str, Any] = {"deadline": deadline, "drain": drain}
    times = {name: value for name, value in times.items() if value is not None}
    settings = ServerSettings(
        host=parse_host(host), port=port,
        immich=None if immich is None else parse_address(immich, "--immich"),
        upstream=upstream, label_sets=parse_label_sets(label_set or []),
        api_key=_api_key(api_key, api_key_file, no_auth), no_auth=no_auth,
        allow_hosts=tuple(allow_host or ()), cors=tuple(cors or ()),
        web_models=tuple(web_model or ()), webgpu_runtime=webgpu_runtime,
        fetch_from=tuple(fetch_from or ()), tls=tls, certificate=cert, private_key=key,
        accept_license=accept_license, backend=backend, threads=threads, offline=offline,
        limits=Limits(**times),
    )  # fmt: skip
    try:
        run(
            model, library=library, settings=settings,
            on_start=functools.partial(_announce, as_json=json),
        )  # fmt: skip
    except KeyboardInterrupt as interrupt:
        if AT_ONCE in interrupt.args:  # a thread of the model would be waited for
            output.flush()
            os._exit(130)
        raise typer.Exit(130) from None


def _api_key(given: str | None, file: Path | None, no_auth: bool) -> str | None:
    """Return the key from the command line, else from the environment.

    Raises:
        ConfigError: there are two, or an empty one.
    """
    from pocketclip.serve.settings_checks import read_api_key

    if given is not None and file is not None:
        raise ConfigError("choose one of --api-key and --api-key-file")
    if file is not None:
        return read_api_key(file)
    if given is not None:
        return given
    known = None if no_auth else os.environ.get(_KEY)
    if known is not None and not known.strip():
        raise ConfigError(f"the variable {_KEY} is empty: unset it, or set it to a key")
    return known


def _announce(running: Running, *, as_json: bool) -> None:
    """Print where the server is, and what its owner should know."""
    from pocketclip.formats.escaping import dump_json

    services, certificate = running.services, running.certificate
    encoder, remarks = services.engine.encoder, services.settings.remarks
    if as_json:
        about = {
            "urls": running.urls, "immich_urls": running.immich_urls,
            "phone_urls": running.phone_urls,
            "fingerprint": None if certificate is None else certificate.fingerprint,
            "model": encoder.config.name, "space_id": encoder.space_id,
            "variant": encoder.variant, "embed_dim": encoder.embed_dim,
            "label_sets": sorted(services.label_sets), "remarks": remarks,
        }  # fmt: skip
        output.say(dump_json(about))
    else:
        output.say(f"{encoder.config.name} at {', '.join(running.urls)}")
        _say_links(running)
        if certificate is not None and certificate.is_own:
            _say_certificate(certificate)
        if running.immich_urls:
            output.say(f"for immich at {', '.join(running.immich_urls)}")
        for remark in remarks:
            output.say(f"note: {remark}")
    output.flush()


def _say_links(running: Running) -> None:
    """Print what browsers open: on this machine, and on a phone, there with a QR code."""
    from pocketclip.cli._qr_code import draw_qr_code

    services = running.services
    # Tokens only on a terminal: they are as good as the key, and must not get into a file.
    with_token = services.settings.api_key is not None and output.on_terminal()
    once = ", once, within ten minutes" if with_token else ""

    def linked(urls: list[str]) -> list[str]:
        if not with_token:
            return [f"{url}/" for url in urls]
        token = services.sessions.new_token()  # of these links one is used
        return [f"{url}/#token={token}" for url in urls]

    if with_token:
        place = running.urls[0].replace("//0.0.0.0:", "//localhost:").replace("[::]", "localhost")
        output.say(f"for a browser{once}: {linked([place])[0]}")
    links = linked(running.phone_urls)
    for number, link in enumerate(links):
        output.say(f"{f'for a phone{once}' if not number else 'or'}: {link}")
    if links:
        drawn = draw_qr_code(links[0], sys.stdout)
        if drawn:
            output.write_bytes(drawn)
        if not services.settings.is_encrypted:
            output.say("note: over plain http a phone lets pages take photographs only; for its "
                       "live camera, add --tls")  # fmt: skip
    elif services.settings.tls:
        output.say("note: only this machine reaches the server: for phones, add --host 0.0.0.0")


def _say_certificate(certificate: Certificate) -> None:
    """Print how to recognise the server's own certificate, and whether it is another one."""
    if certificate.change is not None:
        output.say(f"note: the certificate is another one than before: {certificate.change}")
    output.say("browsers warn of the server's own certificate, as nobody vouches for it: go on "
               "only if the SHA-256 fingerprint that they show is")  # fmt: skip
    output.say(f"  {certificate.fingerprint}")
