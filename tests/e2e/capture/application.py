"""An application that knows nothing of meshes: HTTP on 9001, and two ports where it speaks first.

application.py NAME serves; application.py NAME call HOST PORT [TEXT] connects, says TEXT if there is one, and prints what it
hears until TEXT has come back, or the first line.
"""
import http.server
import socket
import sys
import threading

NAME = sys.argv[1]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        caller = self.client_address[0].removeprefix("::ffff:")
        body = f"{NAME} {self.path} for {self.headers['Host']} by {caller}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def dual(kind=socket.socket):
    listener = kind(socket.AF_INET6)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return listener


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def greet(connection):
    connection.sendall(f"hello from {NAME}\n".encode())
    while data := connection.recv(4096):
        connection.sendall(data)
    connection.close()


def greeter(port):
    listener = dual()
    listener.bind(("::", port))
    listener.listen(100)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=greet, args=(connection,), daemon=True).start()


def call(host, port, text=""):
    heard = b""
    with socket.create_connection((host, int(port)), timeout=15) as connection:
        if text:
            connection.sendall(text.encode())
        while text.encode() not in heard or b"\n" not in heard:
            data = connection.recv(4096)
            if not data:
                break
            heard += data
    sys.stdout.write(heard.decode())


if sys.argv[2:3] == ["call"]:
    call(*sys.argv[3:])
else:
    for port in (9002, 9003):
        threading.Thread(target=greeter, args=(port,), daemon=True).start()
    Server(("::", 9001), Handler).serve_forever()
