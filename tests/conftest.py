import pytest
from extraction.storage import LocalStorage
@pytest.fixture
def storage(tmp_path):
    return LocalStorage(str(tmp_path/"out"))
