"""s3:// and gs:// against a moto server on loopback: real HTTP through polars' own object store.

Google's XML interface is close enough to Amazon's that the same server answers polars' Google client for public
objects. What this cannot show is Google's sign-in.
"""

import io
import json
from collections.abc import Iterator

import polars as pl
import pytest

from qfml.data.sources import CsvSource, ParquetSource
from qfml.errors import DataError

boto3 = pytest.importorskip("boto3", reason="comes with the extra `dev`")
pytest.importorskip("moto.server", reason="comes with the extra `dev`")

DAYS = pl.date_range(pl.date(2024, 1, 2), pl.date(2024, 1, 5), eager=True)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=url, aws_access_key_id="key", aws_secret_access_key="secret", region_name="us-east-1"
    )
    client.create_bucket(Bucket="prices")
    for number in range(2):
        buffer = io.BytesIO()
        rows = slice(2 * number, 2 * number + 2)
        frame = pl.DataFrame({"time": DAYS[rows], "close": [2.0 * number, 2.0 * number + 1]})
        frame.write_parquet(buffer)
        client.put_object(Bucket="prices", Key=f"daily/{number}.parquet", Body=buffer.getvalue(), ACL="public-read")
    client.put_object(Bucket="prices", Key="daily.csv", Body=b"time,close\n2024-01-02,1\n", ACL="public-read")
    yield url
    client.close()
    server.stop()


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str | bool | int]:
    monkeypatch.setenv("PRICES_SECRET", "secret")
    return {
        "aws_access_key_id": "key",
        "aws_secret_access_key": "${PRICES_SECRET}",
        "aws_region": "us-east-1",
        "aws_endpoint_url": server,
        "aws_allow_http": True,
    }


@pytest.fixture
def gcs(server: str) -> dict[str, str | bool | int]:
    account = {
        "gcs_base_url": server,
        "disable_oauth": True,
        "client_email": "",
        "private_key": "",
        "private_key_id": "",
    }
    return {"google_service_account_key": json.dumps(account), "allow_http": True}


@pytest.mark.parametrize("store", ["s3", "gs"])
def test_object_store_file_and_glob(store: str, s3: dict, gcs: dict) -> None:
    options = s3 if store == "s3" else gcs
    one = ParquetSource(f"{store}://prices/daily/1.parquet", storage_options=options)
    assert one.read(["close"])["close"].to_list() == [2.0, 3.0]
    every = ParquetSource(f"{store}://prices/daily/*.parquet", storage_options=options)
    assert every.read(["close"])["close"].to_list() == [0.0, 1.0, 2.0, 3.0]
    assert every.read(["close"], start="2024-01-03", end="2024-01-04")["close"].to_list() == [1.0, 2.0]


@pytest.mark.parametrize("store", ["s3", "gs"])
def test_object_store_csv(store: str, s3: dict, gcs: dict) -> None:
    options = s3 if store == "s3" else gcs
    assert CsvSource(f"{store}://prices/daily.csv", storage_options=options).read()["close"].to_list() == [1.0]


@pytest.mark.parametrize("store", ["s3", "gs"])
def test_object_store_errors_name_the_object(store: str, s3: dict, gcs: dict) -> None:
    options = s3 if store == "s3" else gcs
    with pytest.raises(DataError, match=rf"cannot read parquet: {store}://prices/nothing.*not found"):
        ParquetSource(f"{store}://prices/nothing.parquet", storage_options=options).read()
    with pytest.raises(DataError, match=f"cannot read parquet: {store}://prices/none/"):
        ParquetSource(f"{store}://prices/none/*.parquet", storage_options=options).read()
    with pytest.raises(DataError, match="did you mean `close`"):
        ParquetSource(f"{store}://prices/daily/1.parquet", storage_options=options).read(["clse"])
