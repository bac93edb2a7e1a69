"""Faults of the server: each kind, and a volley of them at random requests of one run."""

import time
from dataclasses import dataclass, field
from email.utils import formatdate
from urllib.parse import urlsplit

from tests.hub_server import Fault

FOREVER = 10_000


def _status(status, headers=lambda chance: {}):
    return lambda chance: Fault("status", status=status, headers=headers(chance))


def _retry_after(chance):
    said = chance.choice(["0", "0", "1", formatdate(time.time() + 1, usegmt=True)])
    return {"Retry-After": said}


def _reset(chance):
    return Fault("reset", share=chance.choice([0.0, chance.uniform(0.01, 0.99)]))


# Kind → maker of one, the requests it can meet (see `Volley`), and what an error for it may say.
KINDS = {
    "cut body": (lambda chance: Fault("cut", share=chance.random()), "f", "cut short|incomplete"),
    "429 with Retry-After": (_status(429, _retry_after), "fhl", "429"),
    "429 without": (_status(429), "fhl", "429"),
    "503": (_status(503), "fhl", "503"),
    "stall": (
        lambda chance: Fault("hang", share=chance.random(), seconds=20.0), "fh", "time|interrupt",
    ),
    "Range ignored": (lambda chance: Fault("ignore_range"), "f", "range"),
    "wrong Content-Range": (lambda chance: Fault("wrong_range"), "f", "range"),
    "expired address": (
        lambda chance: Fault(chance.choice(["expired", "expire"])), "c", "403|expired",
    ),
    "connection reset": (_reset, "fh", "reset|abort|broken"),
}  # fmt: skip


def place_of(request):
    """Which sort of request it is: resolving (h), a file's bytes (f) or a listing (l)."""
    if request.method == "HEAD":
        return "h"
    return "l" if "/api/" in request.path else "f"


@dataclass
class Shot:
    """One fault: its kind, the number of the request it is meant for, and how long it lasts."""

    kind: str
    place: str
    at: int
    fault: Fault
    lasting: bool = False
    paths: set[str] = field(default_factory=set)

    def __str__(self):
        said = f"{self.kind} at {self.place}{self.at}" + (" for good" if self.lasting else "")
        return f"{said} (share {self.fault.share:.3f}, {self.fault.headers or ''})"


class Volley:
    """Takes its place in `HubServer.faults`, and looses each shot at its request.

    A lasting one stays with the file that it met, until the server is told otherwise.
    """

    def __init__(self, shots):
        self.shots = shots
        self.seen = dict.fromkeys("fhl", 0)

    def __call__(self, request):
        place, path = place_of(request), urlsplit(request.path).path
        number = self.seen[place]
        self.seen[place] += 1
        for shot in self.shots:
            if shot.place != place or not shot.fault.times:
                continue
            if shot.kind == "expired address" and request.host != "cdn":
                continue
            if shot.at <= number if not shot.paths else path in shot.paths:
                shot.paths.add(path)
                shot.fault.host, shot.fault.method = request.host, request.method
                return shot.fault
        return None


def draw(chance, kind, counts, lasting):
    """Make a shot of a kind at a random request of a run that has `counts` of each sort."""
    make, places, _ = KINDS[kind]
    fault = make(chance)
    if kind != "expired address":  # that answered twice in a row is a refusal
        fault.times = chance.choice([1, 1, 2, 3])  # of ATTEMPTS
    place = "f" if places == "c" else chance.choices(places, [6, 2, 0.3][: len(places)])[0]
    if place != "f":
        fault.share = 0.0
    if place == "l":  # asked by huggingface_hub, with its own and longer patience
        lasting, fault.times = False, 1
    if lasting:
        fault.times = FOREVER
        fault.kind = "expired" if fault.kind == "expire" else fault.kind
    return Shot(kind, place, chance.randrange(counts[place]), fault, lasting)
