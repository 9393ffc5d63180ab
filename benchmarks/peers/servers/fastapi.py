"""Plain FastAPI: a sync handler in the thread pool; no batches."""

from fastapi import FastAPI, UploadFile

from benchmarks.peers import engine
from benchmarks.peers.engine import Answer

app = FastAPI()
decoder = engine.Decoder()
network = engine.Network()


@app.post("/classify")
def classify(file: UploadFile) -> Answer:
    """Rank one image."""
    return network.rank([decoder.decode(file.file.read())])[0]
