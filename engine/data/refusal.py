"""A clip that cannot be used: no mistake of the caller, but a line of the encoding's report."""


class ClipRefused(Exception):
    """`kind` is one of `KINDS`; `detail` says what was found and what was expected."""

    def __init__(self, kind: str, detail: str):
        assert kind in KINDS, kind
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail


KINDS = ("no caption", "no file", "unreadable", "too short", "too small", "too few frames a second", "black")
