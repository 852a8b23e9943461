"""The plain text in every file that says that it is AI-generated. Knows the words, and no container.

The terms are of the IPTC's controlled vocabulary, which photo agencies, search engines and C2PA use alike:
https://cv.iptc.org/newscodes/digitalsourcetype/. XMP is the form in which pictures carry it.
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

_VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_TERMS = {False: "trainedAlgorithmicMedia", True: "compositeWithTrainedAlgorithmicMedia"}  # whether footage is in it

_READ_BYTES = 1 << 20


def source_type(*, has_footage: bool) -> str:
    """The IPTC's term for a file that a model made, alone or with footage that is in it, by its address."""
    return _VOCABULARY + _TERMS[has_footage]


def tag(*, has_footage: bool) -> str:
    """The words for such a file."""
    return f"AI-generated: {source_type(has_footage=has_footage)}"


def xmp(title: str = "", recipe: str = "", *, has_footage: bool = False) -> bytes:
    """An XMP packet (ISO 16684-1) with the IPTC's digital source type, and with more where it is given."""
    term = source_type(has_footage=has_footage)
    facts = [f"<Iptc4xmpExt:DigitalSourceType>{term}</Iptc4xmpExt:DigitalSourceType>"]
    facts += [_texts("dc:description", tag(has_footage=has_footage))]
    facts += [_texts(name, text) for name, text in (("dc:title", title), ("exif:UserComment", recipe)) if text]
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" '
        'xmlns:exif="http://ns.adobe.com/exif/1.0/" '
        'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
        f"{''.join(facts)}</rdf:Description></rdf:RDF></x:xmpmeta>"
        '<?xpacket end="r"?>'
    ).encode()


def has_tag(path: Path) -> bool:
    """Whether a file, or every picture of a folder, has the words of the tag, whatever its format.

    Raises:
        OSError: it cannot be read.
    """
    if path.is_dir():
        pictures = sorted(path.glob("*.png"))
        return bool(pictures) and all(map(has_tag, pictures))
    return any(contains(path, tag(has_footage=each).encode()) for each in _TERMS)


def contains(path: Path, wanted: bytes) -> bool:
    """Whether a file has these bytes anywhere.

    Raises:
        OSError: it cannot be read.
    """
    kept = b""
    with path.open("rb") as file:
        while content := file.read(_READ_BYTES):
            if wanted in kept + content:
                return True
            kept = content[-len(wanted) :]
    return False


def _texts(name: str, text: str) -> str:
    return f'<{name}><rdf:Alt><rdf:li xml:lang="x-default">{escape(text)}</rdf:li></rdf:Alt></{name}>'
