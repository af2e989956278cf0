"""The client, the ledger and what both stand on."""
