"""Patterns of personal data and secrets in texts. Patterns find candidates, not facts: read the examples."""

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_RESERVED = ("example.com", "example.org", "example.net", "example", "test", "invalid", "localhost")
"""Domains that belong to nobody (RFC 2606)"""


@dataclass(frozen=True)
class Pattern:
    """A kind of personal data.

    Attributes:
        name: for reports, in the plural.
        regex: finds candidates.
        holds: whether a candidate is one.
        mask: what takes the place of a match: reserved for examples, so that it is nobody's.
        hint: a character that every match contains, to skip other texts fast; None: no such character.
    """

    name: str
    regex: re.Pattern[str]
    mask: str
    holds: Callable[[str], bool] = lambda found: True
    hint: str | None = None

    def matches(self, text: str) -> Iterator[str]:
        """What the pattern finds in a text."""
        if self.hint is None or self.hint in text:
            yield from (found.group() for found in self.regex.finditer(text) if self.holds(found.group()))

    def masked(self, text: str) -> tuple[str, int]:
        """The text with ``mask`` for every match, and how many there were."""
        count = 0

        def replaced(found: re.Match[str]) -> str:
            nonlocal count
            if not self.holds(found.group()):
                return found.group()
            count += 1
            return self.mask

        return (self.regex.sub(replaced, text) if self.hint is None or self.hint in text else text), count


def luhn(number: str) -> bool:
    """Whether the digits have a valid check digit (ISO/IEC 7812-1): that of all card numbers.

    Args:
        number: digits, with spaces or hyphens between them.
    """
    digits = [int(character) for character in number if character.isdigit()]
    doubled = sum(sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return len(set(digits)) > 1 and (doubled + sum(digits[-1::-2])) % 10 == 0


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _is_somebodys(address: str) -> bool:
    domain = address.rpartition("@")[2].lower()
    return not any(domain == reserved or domain.endswith(f".{reserved}") for reserved in _RESERVED)


def _is_phone(number: str) -> bool:
    digits = sum(character.isdigit() for character in number)
    # 555-0100 to 555-0199 are reserved for fiction.
    return 10 <= digits <= 15 and not re.search(r"555[ .-]?01\d\d", number)


PATTERNS = (
    Pattern(
        "email addresses",
        re.compile(r"\b[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,4}[A-Za-z]{2,24}\b"),
        "name@example.com",
        _is_somebodys,
        hint="@",
    ),
    Pattern(
        "phone numbers",
        re.compile(
            r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?)(?:\(?\d{1,4}\)?[ .-]?){2,5}\d{2,4}(?![\w-])"
            r"|(?<![\w.+-])\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}(?![\w-])"
        ),
        "555-0100",
        _is_phone,
    ),
    Pattern(
        "public IP addresses",
        re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)"),
        "192.0.2.1",
        _is_public,
        hint=".",
    ),
    Pattern(
        "card numbers",
        re.compile(r"(?<![\w.+-])[3-6]\d{3}(?:[ -]?\d{4}){2}[ -]?\d{1,7}(?![\w-])"),
        "0000 0000 0000 0000",
        luhn,
    ),
    Pattern(
        "keys and tokens",
        re.compile(
            r"\b(?:sk-[A-Za-z0-9_-]{20,}|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,}|hf_[A-Za-z0-9]{30,}"
            r"|xox[abpr]-[A-Za-z0-9-]{10,}|AIza[0-9A-Za-z_-]{35}|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[\w-]+)"
            r"|-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----(?s:.{0,20000}?-----END (?:[A-Z]+ )?PRIVATE KEY-----)?"
        ),
        "KEY",
    ),
)
