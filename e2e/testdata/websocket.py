"""An echo over WebSocket, and a client of it: websocket.py serve|check PORT."""
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


asyncio.run({"serve": serve, "check": check}[sys.argv[1]](int(sys.argv[2])))
