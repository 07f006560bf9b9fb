"""A real HTTP server for one file, with the faults that servers have."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """What the server sends, how it misbehaves, and what it was asked.

    Attributes
    ----------
    content
        The file; every path leads to it.
    drop_after
        For each coming request: after how many bytes the connection breaks; None for never.
    statuses
        For each coming request: the error to answer with; None for none.
    announce_size
        Whether it tells the size before it sends.
    asked
        The path of each request so far.
    """

    content: bytes
    drop_after: list[int | None] = field(default_factory=list)
    statuses: list[int | None] = field(default_factory=list)
    announce_size: bool = True
    asked: list[str] = field(default_factory=list)
    port: int = 0

    def url(self, path="file.pt") -> str:
        return f"http://127.0.0.1:{self.port}/{path}"


@contextmanager
def serving(server: FileServer) -> Iterator[FileServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            _answer(self, server)

        def log_message(self, *args):
            """Keep the tests' output clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        server.port = http_server.server_address[1]
        thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            http_server.shutdown()
            thread.join()


def _answer(handler, server):
    server.asked.append(handler.path)
    status = server.statuses.pop(0) if server.statuses else None
    drop_after = server.drop_after.pop(0) if server.drop_after else None
    if status is not None:
        handler.send_error(status)
        return
    handler.send_response(200)
    if server.announce_size:
        handler.send_header("Content-Length", str(len(server.content)))
    handler.end_headers()
    # The handler closes the connection when it returns, before all is sent.
    handler.wfile.write(server.content[:drop_after])
