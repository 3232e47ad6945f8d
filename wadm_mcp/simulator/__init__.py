"""Loopback Binance and Bybit that speak the real wires. It knows `model` and `errors` and nothing else of the house."""
