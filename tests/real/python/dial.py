"""Dials with one of two libraries, as their guides show it, and prints what came of it as one line of JSON.

Reads a JSON object: library, url, and optionally headers and subprotocols. Sends one message and waits for the next.
"""

import json
import sys


def with_websockets(url, headers, subprotocols):
    from websockets.exceptions import ConnectionClosed, InvalidStatus
    from websockets.sync.client import connect

    try:
        # `proxy`: by default it obeys the environment, which is not what is tested here.
        with connect(url, additional_headers=headers, subprotocols=subprotocols, proxy=None) as client:
            client.send("hello from websockets")
            return {"subprotocol": client.subprotocol, "echo": client.recv(timeout=10)}
    except InvalidStatus as error:
        answer = error.response
        return {"status": answer.status_code, "body": answer.body.decode(), "says": str(error)}
    except ConnectionClosed as error:
        return {"code": error.rcvd.code, "reason": error.rcvd.reason, "says": str(error)}


def with_websocket_client(url, headers, subprotocols):
    import websocket

    try:
        client = websocket.create_connection(url, timeout=10, header=headers, subprotocols=subprotocols)
    except websocket.WebSocketBadStatusException as error:
        return {"status": error.status_code, "body": error.resp_body.decode(), "says": str(error).split(" -+-+- ")[0]}
    client.send("hello from websocket-client")
    opcode, data = client.recv_data()
    if opcode == websocket.ABNF.OPCODE_CLOSE:
        return {"code": int.from_bytes(data[:2], "big"), "reason": data[2:].decode()}
    return {"subprotocol": client.getsubprotocol(), "echo": data.decode()}


def with_websocket_app(url, headers, subprotocols):
    """The other library's callbacks, which is how most programs use it."""
    import websocket

    seen = {}

    def on_message(app, message):
        seen.update(echo=message)
        app.close()

    def on_close(_, code, reason):
        seen.setdefault("code", code)
        seen.setdefault("reason", reason)

    def on_error(_, error):
        status = getattr(error, "status_code", None)
        seen.update({"status": status} if status else {"error": repr(error)})

    app = websocket.WebSocketApp(
        url,
        header=headers,
        subprotocols=subprotocols,
        on_open=lambda app: app.send("hello from WebSocketApp"),
        on_message=on_message,
        on_close=on_close,
        on_error=on_error,
    )
    app.run_forever()
    return seen


asked = json.load(sys.stdin)
dial = {
    "websockets": with_websockets,
    "websocket-client": with_websocket_client,
    "WebSocketApp": with_websocket_app,
}[asked["library"]]
print(json.dumps(dial(asked["url"], asked.get("headers"), asked.get("subprotocols"))))
