"""The behaviour of a server, as tests set it, and the requests that it has received."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.servers.answers import Refused
from tests.servers.wire import Answer, Connection, Request


@dataclass(slots=True)
class Rule:
    """Refuse matching requests, after `after` of them, `times` times (-1: always)."""

    code: str
    status: int
    keys: re.Pattern[str]
    methods: frozenset[str]
    after: int
    times: int

    def applies(self, method: str, place: str) -> bool:
        """Decide about a request, which is counted."""
        if (self.methods and method not in self.methods) or not self.keys.search(place) or self.times == 0:
            return False
        if self.after > 0:
            self.after -= 1
            return False
        self.times -= self.times > 0
        return True


@dataclass(slots=True)
class Seen:
    """The requests that a server has received."""

    methods: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)  # by the names of AWS
    asked: list[str] = field(default_factory=list)  # in order, as ``GetObject bucket/key``
    bytes_sent: int = 0  # in bodies
    most_at_once: int = 0  # that waited for their response


class Server:
    """The common part of all servers; each kind has its own `answer`."""

    def __init__(self) -> None:
        self.seen = Seen()
        self._at_once = 0
        self._operation = ""
        self.behave()

    def behave(self) -> None:
        """Reset the behaviour: no delay, no refusal."""
        self.delays: dict[str, float] = {}  # by operation; "" for the others
        self.conditions = "honoured"  # or "ignored", or "unsupported"
        self.access = "any"  # or "anonymous", or "signed"
        self.rules: list[Rule] = []

    def __call__(self, request: Request, connection: Connection) -> None:
        """Answer a request, after the delay that was set."""
        if request.target.startswith("/-/"):
            connection.send(request, self._control(request))
            return
        self._at_once += 1
        self.seen.most_at_once = max(self.seen.most_at_once, self._at_once)
        try:
            answer = self.answer(request)
        except Refused as refused:
            answer = refused.answer()
        except (LookupError, ValueError) as error:
            answer = Refused(400, "InvalidArgument", str(error)).answer()
        self.seen.bytes_sent += len(answer.body)
        if self.delays and (seconds := self.delays.get(self._operation, self.delays.get("", 0.0))):
            asyncio.get_running_loop().call_later(seconds, self._send, request, answer, connection)
        else:
            self._send(request, answer, connection)

    def _send(self, request: Request, answer: Answer, connection: Connection) -> None:
        self._at_once -= 1
        connection.send(request, answer)

    def answer(self, request: Request) -> Answer:
        """Return the answer to a request, or raise `Refused`."""
        raise NotImplementedError

    def note(self, request: Request, operation: str, place: str) -> None:
        """Count a request, and raise `Refused` if a test wants this."""
        self._operation = operation
        self.seen.methods[request.method] += 1
        self.seen.operations[operation] += 1
        self.seen.asked.append(f"{operation} {place}")
        if self.access == ("anonymous" if "authorization" in request.headers else "signed"):
            raise Refused(403, "AccessDenied", "Access Denied")
        self.refuse(request.method, place)

    def refuse(self, method: str, place: str) -> None:
        """Raise `Refused` if a rule says so."""
        for rule in self.rules:
            if rule.applies(method, place):
                raise Refused(rule.status, rule.code, f"{rule.code}, as the test wants it")

    def _control(self, request: Request) -> Answer:
        command = request.target.partition("?")[0].removeprefix("/-/")
        try:
            result = self.obey(command, request.query)
        except (LookupError, ValueError, OSError, re.error) as error:
            return Answer(400, body=f"{type(error).__name__}: {error}".encode())
        return Answer(200, {"Content-Type": "application/json"}, json.dumps(result).encode())

    def obey(self, command: str, given: Mapping[str, str]) -> object:
        """Run a command of a test; LookupError if it is unknown."""
        if command == "seen":
            seen = self.seen
            return {name: getattr(seen, name) for name in seen.__slots__ if name != "asked"}
        if command == "asked":
            return self.seen.asked
        if command == "forget":
            self.seen = Seen()
        elif command == "behave":
            self.behave()
        elif command == "delay":
            self.delays[given["operation"]] = float(given["seconds"])
        elif command in ("conditions", "access"):
            setattr(self, command, given["mode"])
        elif command == "refuse":
            self.rules.append(
                Rule(
                    given["code"],
                    int(given["status"]),
                    re.compile(given["keys"]),
                    frozenset(given["methods"].split()),
                    int(given["after"]),
                    int(given["times"]),
                )
            )
        elif command != "empty":  # there is nothing to delete
            raise LookupError(f"no command {command!r}")
        return None


def operation_of(method: str, query: Mapping[str, str], *, has_bucket: bool, has_key: bool) -> str:
    """Return the name that AWS has for a request."""
    if not has_bucket:
        return "ListBuckets"
    known = {"GET": "ListObjectsV2", "PUT": "CreateBucket", "HEAD": "HeadBucket", "DELETE": "DeleteBucket"}
    if has_key and "uploadId" in query:
        known = {"PUT": "UploadPart", "POST": "CompleteMultipartUpload", "DELETE": "AbortMultipartUpload"}
    elif has_key:
        known = {"POST": "CreateMultipartUpload"}
    elif "location" in query or "uploads" in query:
        known = {"GET": "GetBucketLocation" if "location" in query else "ListMultipartUploads"}
    elif "delete" in query:
        known = {"POST": "DeleteObjects"}
    return known.get(method, f"{method.capitalize()}Object")
