"""Flow control of a connection."""

from uvicorn.protocols.http.flow_control import FlowControl


class Flow(FlowControl):
    """uvicorn's flow control, which stays paused while received bytes wait to be parsed.

    Otherwise the application, waiting for a body, would resume reading.
    """

    is_full = False

    def resume_reading(self) -> None:
        """Read on, unless enough is buffered."""
        if not self.is_full:
            super().resume_reading()
