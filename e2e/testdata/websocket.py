"""An echo over WebSocket, and clients of it: websocket.py serve|check PORT, or talk PORT with Host app.example.com."""
import asyncio
import os
import sys

import websockets


async def echo(ws, *_):
    async for message in ws:
        await ws.send(message)


async def serve(port):
    async with websockets.serve(echo, "127.0.0.1", port, max_size=None):
        print("listening", flush=True)
        await asyncio.Future()


async def check(port):
    async with websockets.connect(f"ws://127.0.0.1:{port}", max_size=None) as ws:
        for size in (0, 1, 125, 126, 65535, 65536, 4 << 20):
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


async def talk(port):
    # The library compresses messages unless it is told not to.
    async with websockets.connect("ws://app.example.com/talk", host="127.0.0.1", port=port) as ws:
        for text in ("hello 词", "hello 词 again", "\x1b[31mred"):
            await ws.send(text)
            assert await ws.recv() == text
        await ws.send(b"\xff\x00")
        assert await ws.recv() == b"\xff\x00"
        await (await ws.ping(b"ping"))
        await ws.close(4000, "enough")
    print("all as it should be")


asyncio.run({"serve": serve, "check": check, "talk": talk}[sys.argv[1]](int(sys.argv[2])))
