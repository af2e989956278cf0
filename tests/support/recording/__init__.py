"""Cassettes: real or scripted HTTP traffic in readable files, recorded once and replayed strictly ever after."""
