"""A gRPC service of all four kinds, and clients of it: grpc_streams.py serve|check PORT, or unary|many|total|both PORT [ROOTS] for one
long call with the name KIND.grpc.example.com. With ROOTS, a file of certificates, it is over TLS."""
import concurrent.futures
import os
import sys
import threading

import grpc


def unary(request, context):
    return request


def many(request, context):
    n, _, size = request.partition(b" of ")
    for i in range(int(n)):
        yield (b"%d" % i).ljust(int(size or 0))


def total(requests, context):
    return b"%d" % sum(len(r) for r in requests)


def both(requests, context):
    yield from requests


def refuse(request, context):
    context.abort(grpc.StatusCode.PERMISSION_DENIED, "no")


def serve(port):
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Many": grpc.unary_stream_rpc_method_handler(many),
        "Total": grpc.stream_unary_rpc_method_handler(total),
        "Both": grpc.stream_stream_rpc_method_handler(both),
        "Refuse": grpc.unary_unary_rpc_method_handler(refuse),
    }),))
    assert server.add_insecure_port(f"127.0.0.1:{port}") == port
    server.start()
    print("listening", flush=True)
    threading.Event().wait()


def check(port):
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        big = os.urandom(3 << 20)
        assert channel.unary_unary("/t.T/Unary")(big, timeout=60) == big
        assert list(channel.unary_stream("/t.T/Many")(b"1000", timeout=60)) == [b"%d" % i for i in range(1000)]
        assert channel.stream_unary("/t.T/Total")(iter([b"x" * 1000] * 1000), timeout=60) == b"1000000"
        # Each answer arrives before the next request is sent.
        turn = threading.Semaphore(1)

        def requests():
            for i in range(200):
                turn.acquire()
                yield b"turn %d" % i

        for i, answer in enumerate(channel.stream_stream("/t.T/Both")(requests(), timeout=60)):
            assert answer == b"turn %d" % i, answer
            turn.release()
        assert i == 199, i
        # A call that is refused at once has an answer that is a head alone.
        for _ in range(200):
            try:
                channel.unary_unary("/t.T/Refuse")(b"", timeout=60)
                raise AssertionError("not refused")
            except grpc.RpcError as e:
                assert (e.code(), e.details()) == (grpc.StatusCode.PERMISSION_DENIED, "no"), e
    print("all as it should be")


def long_call(kind):
    def connect(port, roots):
        name, address = kind + ".grpc.example.com", f"127.0.0.1:{port}"
        options = [("grpc.enable_http_proxy", 0), ("grpc.default_authority", name)]
        if roots is None:
            return grpc.insecure_channel(address, options=options)
        with open(roots, "rb") as f:
            credentials = grpc.ssl_channel_credentials(f.read())
        return grpc.secure_channel(address, credentials, options=options + [("grpc.ssl_target_name_override", name)])

    def call(port, roots=None):
        with connect(port, roots) as channel:
            if kind == "unary":
                big = os.urandom(3 << 20)
                assert channel.unary_unary("/t.T/Unary")(big, timeout=300) == big
            elif kind == "many":
                answers = list(channel.unary_stream("/t.T/Many")(b"3072 of 1024", timeout=300))
                assert answers == [(b"%d" % i).ljust(1024) for i in range(3072)], len(answers)
            elif kind == "total":
                assert channel.stream_unary("/t.T/Total")(iter([b"x" * 1024] * 3072), timeout=300) == b"3145728"
            else:
                turn = threading.Semaphore(1)

                def requests():
                    for i in range(600):
                        turn.acquire()
                        yield (b"turn %d" % i).ljust(1024)

                for i, answer in enumerate(channel.stream_stream("/t.T/Both")(requests(), timeout=300)):
                    assert answer == (b"turn %d" % i).ljust(1024), answer
                    turn.release()
                assert i == 599, i
    return call


calls = {kind: long_call(kind) for kind in ("unary", "many", "total", "both")}
{**calls, "serve": serve, "check": check}[sys.argv[1]](int(sys.argv[2]), *sys.argv[3:])
