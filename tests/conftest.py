import labkit
import pytest


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    "JupyterLab, for all tests in a browser (they share a worker: `pytest.mark.xdist_group('lab')`)"
    pytest.importorskip("jupyterlab")
    with labkit.jupyterlab(tmp_path_factory.mktemp("lab")) as server:
        yield server
