"""The one family of errors a user or an agent may see. Each message is one line that names what was wrong and what would be right."""


class WadmError(Exception):
    """Anything WADM says no to. The text is written for the reader, never a library's own."""


class SettingError(WadmError):
    """A setting or a command-line argument cannot be used; the start stops with status 2."""


class FrameError(WadmError):
    """An exchange sent something that is not what its documents say. Counted; nothing else changes."""


class ExchangeError(WadmError):
    """An exchange could not be reached or refused a request."""


class StoreError(WadmError):
    """The store cannot be used as it is: damaged, of another schema, or out of reach."""


class QueryError(WadmError):
    """A question cannot be answered as asked; the text names the argument, what was given, what is allowed, and a call that would work."""


class UnknownSymbol(QueryError):
    """The symbol asked for is not followed; the text names near matches."""
