"""An echo over WebSocket, and clients of it: websocket.py serve|check PORT, or talk|turns PORT [ROOTS] with Host app|socket.example.com.
With ROOTS, a file of certificates, it is over TLS."""
import asyncio
import os
import ssl
import sys

import websockets


async def echo(ws, *_):
    async for message in ws:
        if message == "close":
            await ws.close(4002, "as you say, 好")
            return
        await ws.send(message)


async def serve(port):
    async with websockets.serve(echo, "127.0.0.1", port, max_size=None, ping_interval=None):
        print("listening", flush=True)
        await asyncio.Future()


async def check(port):
    async with websockets.connect(f"ws://127.0.0.1:{port}", max_size=None) as ws:
        for size in (0, 1, 125, 126, 65535, 65536, 16 << 20):
            message = os.urandom(size)
            await ws.send(message)
            assert await ws.recv() == message, size
        for i in range(500):
            await ws.send(f"word {i} 词")
        for i in range(500):
            assert await ws.recv() == f"word {i} 词"
        await (await ws.ping())
    assert ws.close_code == 1000, ws.close_code
    print("all as it should be")


def named(url, port, roots, **options):
    """A connection to a name that is served at a port of this machine."""
    if roots:
        url = url.replace("ws:", "wss:")
        options["ssl"] = ssl.create_default_context(cafile=roots)
        options["server_hostname"] = url.split("/")[2]
    return websockets.connect(url, host="127.0.0.1", port=port, **options)


async def talk(port, roots=None):
    # The library compresses messages unless it is told not to.
    async with named("ws://app.example.com/talk", port, roots) as ws:
        for text in ("hello 词", "hello 词 again", "\x1b[31mred"):
            await ws.send(text)
            assert await ws.recv() == text
        await ws.send(b"\xff\x00")
        assert await ws.recv() == b"\xff\x00"
        await (await ws.ping(b"ping"))
        await ws.close(4000, "enough")
    print("all as it should be")


async def fragments(ws, message):
    """Parts of a message, with a ping between them that is answered before the message is whole."""
    for at in range(0, len(message), 1000):
        yield message[at:at + 1000]
        await (await ws.ping())


async def turns(port, roots=None):
    def connect():
        return named("ws://socket.example.com/", port, roots, compression=None, ping_interval=None, close_timeout=120)

    async with connect() as ws:
        for i in range(800):
            message = os.urandom(4096)
            await ws.send(fragments(ws, message) if i % 8 == 0 else message)
            assert await ws.recv() == message, i
        await ws.close(4001, "enough")
    assert ws.close_code == 4001, ws.close_code
    async with connect() as ws:
        await ws.send("close")
        try:
            raise AssertionError(await ws.recv())
        except websockets.ConnectionClosed as e:
            assert (e.rcvd.code, e.rcvd.reason) == (4002, "as you say, 好"), e
    print("all as it should be")


asyncio.run({"serve": serve, "check": check, "talk": talk, "turns": turns}[sys.argv[1]](int(sys.argv[2]), *sys.argv[3:]))
