"""The compiled part (src/bindings/module.cc). Each function returns the JSON and the terminal's report of a result."""

__version__: str

class NativeError(Exception): ...

def compare(
    reference: list[str],
    candidate: list[str],
    model: str | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    points: str = "",
    layers: str = "",
) -> tuple[str, str]: ...
def replay(traces: list[str], model: str, points: str = "", layers: str = "") -> tuple[str, str]: ...
