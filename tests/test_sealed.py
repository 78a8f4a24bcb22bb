import json

import pytest

from oxe_curate.errors import DataError
from oxe_curate.sealed import check_seal, seal

DATA = {"a": 1, "sets": {"x": {"source": "/old", "n": [1, 2.5]}}}


def test_a_sealed_object_survives_json():
    check_seal(json.loads(json.dumps(seal(DATA))), "file")


@pytest.mark.parametrize("change", [{"a": 2}, {"b": None}, {"sets": {}}])
def test_a_change_is_noticed(change):
    with pytest.raises(DataError, match="file: changed or damaged"):
        check_seal({**seal(DATA), **change}, "file")


def test_open_keys_may_change():
    sealed = json.loads(json.dumps(seal(DATA, ["source"])))
    sealed["sets"]["x"]["source"] = "/new"
    check_seal(sealed, "file", ["source"])
    with pytest.raises(DataError):
        check_seal(sealed, "file")


def test_an_object_without_a_checksum_passes():
    check_seal(DATA, "file")
