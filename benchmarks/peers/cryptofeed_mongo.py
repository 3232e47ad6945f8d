"""cryptofeed's `TradeMongo` on the loopback exchange of these benchmarks: the peer that records into MongoDB.

    python benchmarks/peers/cryptofeed_mongo.py WEBSOCKET-URL MONGODB-PORT DATABASE SYMBOLS

It runs in an environment of its own. Two checks are disabled for loopback: that the address is `wss://`, and that symbols are loaded from
the exchange's REST. Release 2.4.1 needs its event loop set explicitly.
"""

import asyncio
import sys

import uvloop
from cryptofeed import FeedHandler
from cryptofeed import connection as connections
from cryptofeed.backends.mongo import TradeMongo
from cryptofeed.connection import WebsocketEndpoint
from cryptofeed.defines import PERPETUAL, TRADES
from cryptofeed.exchanges import BinanceFutures
from cryptofeed.symbols import Symbol, Symbols


def main() -> None:
    url, port, database, names = sys.argv[1:]
    checked = connections.WSAsyncConn.__init__

    def unchecked(self, address, *arguments, **more):
        checked(self, "wss" + address.removeprefix("ws"), *arguments, **more)
        self.address = address

    connections.WSAsyncConn.__init__ = unchecked
    symbols = {Symbol(name.removesuffix("USDT"), "USDT", type=PERPETUAL).normalized: name for name in names.split(",")}
    info = {"tick_size": dict.fromkeys(symbols, "0.10"), "instrument_type": dict.fromkeys(symbols, PERPETUAL)}
    Symbols.set(BinanceFutures.id, symbols, info)
    BinanceFutures.websocket_endpoints = [WebsocketEndpoint(url, options={"compression": None})]
    handler = FeedHandler()
    asyncio.set_event_loop(uvloop.new_event_loop())
    handler.add_feed(BinanceFutures(symbols=list(symbols), channels=[TRADES], callbacks={TRADES: TradeMongo(database, port=int(port))}))
    handler.run()


if __name__ == "__main__":
    main()
