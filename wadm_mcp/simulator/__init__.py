"""Loopback Binance and Bybit that speak the exchanges' real protocols. Imports only `model` and `errors` of this project."""
