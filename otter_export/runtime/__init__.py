"""The runtime: drive a built engine with reward-guided decoding. numpy and an engine library only."""
