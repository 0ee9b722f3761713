"""A certificate of the server's own: made at the first start, kept, and made anew when it must be.

    made = keep(needed_names(settings), context.load_cert_chain, further=machine_addresses())
    made.fingerprint  # "5F:0C:..."

It is for one server (a leaf, CA:FALSE), so that nobody who trusts it trusts more than that. Nobody
vouches for it: people compare its fingerprint. Files, in the folder `tls` of the user's data:

    key.pem          the private key, readable by the user alone
    certificate.pem  the certificate
    lock             held while they are read or written
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pocketclip.errors import ConfigError, MissingDependencyError, how_to_install
from pocketclip.serve.addresses import machine_names, reachable_addresses
from pocketclip.serve.origins import allowed_name, is_address
from pocketclip.serve.process.certificate import Certificate, fingerprint_of
from pocketclip.serve.settings import ServerSettings
from pocketclip.storage import locks
from pocketclip.storage.local import write_whole
from pocketclip.storage.private import others_can_read, private_file, private_folder
from pocketclip.storage.user_data import user_data

try:
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as error:
    raise MissingDependencyError(f"--tls needs {error.name}: {how_to_install('serve')}") from error

DAYS = 397
"""Browsers refuse certificates that are valid for longer."""
RENEW_DAYS = 30
"""So long before its end a certificate is made anew."""
_MOST_NAMES = 100  # in a certificate: those of other networks are kept, up to this
_MOST_BYTES = 1 << 16  # of a file that is read
_ALWAYS = ("localhost", "127.0.0.1", "::1")


def needed_names(settings: ServerSettings) -> list[str]:
    """Return the names and addresses without which a certificate will not do for a server.

    Of the machine's addresses only those count that the server is reached at: networks of
    containers come and go, and phones would be asked again each time.
    """
    given = filter(None, map(allowed_name, (*settings.allow_hosts, settings.host)))
    bound = [settings.host] if is_address(settings.host) else []
    reached = reachable_addresses(bound, likely=True)
    names = [*_ALWAYS, *machine_names(), *reached, *map(_normal, given)]
    return [one for one in dict.fromkeys(names) if one not in ("0.0.0.0", "::")]


def keep(
    names: Sequence[str],
    load: Callable[[Path, Path], object],
    *,
    further: Sequence[str] = (),
    folder: Path | None = None,
    now: datetime.datetime | None = None,
) -> Certificate:
    """Load the certificate that is kept, after making one if there is none that will do.

    It is made anew, with the same key, when it is damaged, is about to end, or lacks a name. Names
    that only the old one has stay in it: a machine that goes back and forth between two networks
    shows the same certificate in both.

    Args:
        names: host names and IP addresses that it must be for.
        further: those that a new one is for too.
        load: takes the files of the certificate and of the key, while no other process replaces
            them.
        folder: where they are; None for the user's data.
        now: the time.

    Raises:
        ConfigError: the files cannot be written.
        StorageError: the user has no folder for data.
    """
    folder = user_data("tls") if folder is None else folder
    now = datetime.datetime.now(datetime.timezone.utc) if now is None else now
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    try:
        private_folder(folder)
        folder.chmod(0o700)
        with locks.exclusive(folder / "lock"):
            made, change = _kept(certificate, key, names, further, now)
            load(certificate, key)
    except OSError as error:
        raise ConfigError(
            "--tls keeps its certificate in the folder tls of your data (POCKETCLIP_DATA, else "
            f"~/.local/share/pocketclip), which cannot be used: {error.strerror or error}; set "
            "POCKETCLIP_DATA to a folder of yours, or give --cert and --key"
        ) from error
    der = made.public_bytes(serialization.Encoding.DER)
    return Certificate(
        fingerprint=fingerprint_of(der), file=certificate, is_own=True, change=change
    )


def _kept(
    file: Path,
    key_file: Path,
    names: Sequence[str],
    further: Sequence[str],
    now: datetime.datetime,
) -> tuple[x509.Certificate, str | None]:
    """Return the certificate in the file, after replacing it if it will not do, and why."""
    is_first = not os.path.lexists(file) and not os.path.lexists(key_file)
    key, old = _read_key(key_file), _read_certificate(file)
    why = "the key was missing, damaged or open to others" if key is None else None
    if key is None:
        key = ec.generate_private_key(ec.SECP256R1())
        _write(key_file, key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ))  # fmt: skip
    why = why or _why_not(old, key, names, now)
    if why is None:
        assert old is not None
        return old, None
    kept = _names_of(old) if old is not None else []
    made = _make(key, list(dict.fromkeys([*names, *further, *kept]))[:_MOST_NAMES], now)
    _write(file, made.public_bytes(serialization.Encoding.PEM))
    return made, None if is_first else why


def _why_not(
    old: x509.Certificate | None, key: ec.EllipticCurvePrivateKey, names: Sequence[str],
    now: datetime.datetime,
) -> str | None:  # fmt: skip
    """Return why a certificate will not do any more; None if it will."""
    if old is None or old.public_key() != key.public_key():
        return "the old one was missing or damaged"
    if now < old.not_valid_before_utc:
        return "the old one was not valid yet by this machine's clock"
    if old.not_valid_after_utc - now < datetime.timedelta(days=RENEW_DAYS):
        return "the old one was about to end"
    missing = [one for one in names if one not in _names_of(old)]
    if missing:
        return f"the old one was not for {', '.join(missing)}"
    return None


def _make(
    key: ec.EllipticCurvePrivateKey, names: Iterable[str], now: datetime.datetime
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pocketclip")])
    begin = now - datetime.timedelta(days=1)  # clocks of phones may be late
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=False, crl_sign=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        # The last second counts as valid too.
        .not_valid_after(begin + datetime.timedelta(days=DAYS, seconds=-1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(map(_general_name, names)), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def _general_name(name: str) -> x509.GeneralName:
    if is_address(name):
        return x509.IPAddress(ipaddress.ip_address(name))
    return x509.DNSName(name)


def _names_of(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        addresses = names.get_values_for_type(x509.IPAddress)
        return [*names.get_values_for_type(x509.DNSName), *map(str, addresses)]
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return []


def _normal(name: str) -> str:
    """Return a name as a certificate gives it back."""
    return str(ipaddress.ip_address(name.partition("%")[0])) if is_address(name) else name


def _read_key(file: Path) -> ec.EllipticCurvePrivateKey | None:
    """Return a key; None for one that is missing, damaged, of another kind or open to others."""
    if others_can_read(file):
        return None
    with contextlib.suppress(OSError, ValueError, TypeError, UnsupportedAlgorithm):
        key = serialization.load_pem_private_key(_read(file), password=None)
        if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp256r1":
            return key
    return None


def _read_certificate(file: Path) -> x509.Certificate | None:
    with contextlib.suppress(OSError, ValueError, UnsupportedAlgorithm):
        found = x509.load_pem_x509_certificate(_read(file))
        found.public_key()  # of a kind that is known
        return found
    return None


def _read(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(_MOST_BYTES)


def _write(file: Path, data: bytes) -> None:
    """Write a file whole, readable by the user alone from its first byte."""
    with write_whole(file) as temporary:
        private_file(temporary)
        temporary.write_bytes(data)
