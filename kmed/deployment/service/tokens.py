"""The token that clients must send: from where it is read, and how it is compared."""

import hashlib
import hmac
import os
import pathlib

from kmed.errors import ConfigError

VARIABLE = "KMED_TOKEN"  # of the environment
SHORTEST = 16


def read_token(token_file=None) -> str | None:
    """Returns the token that clients must send, from a file or the environment variable KMED_TOKEN; None: no token.

    Neither the command line nor the list of processes shows it then.

    Raises: ConfigError: it is given twice, cannot be read, is too short, or cannot stand in a header.
    """
    given = os.environ.get(VARIABLE)
    if token_file is None and given is None:
        return None
    if token_file is not None and given is not None:
        raise ConfigError(f"The token is given twice, in {VARIABLE} and in {token_file}. Leave one of them out.")
    place = VARIABLE if token_file is None else str(token_file)
    token = given or ""
    if token_file is not None:
        try:
            token = pathlib.Path(token_file).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not ASCII"
            raise ConfigError(f"The token cannot be read from {token_file}: {reason}.") from None
    if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"The token in {place} must have at least {SHORTEST} ASCII characters and no spaces. Make one with: "
            "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return token


def is_token(header: bytes, token: str) -> bool:
    """Returns whether an Authorization header is "Bearer TOKEN", in a time that does not depend on what it holds.

    Digests are compared, since they have one length: not even that of the token can be measured.
    """
    scheme, _, sent = header.partition(b" ")
    same = hmac.compare_digest(hashlib.sha256(sent).digest(), hashlib.sha256(token.encode()).digest())
    return same and scheme.lower() == b"bearer"
